"""`make bench`: broadcasts over shaped links between network namespaces, beside what else can send the same bytes."""

"""What a run leaves behind: records, tables, comparisons and figures."""

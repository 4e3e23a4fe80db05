"""The operator's side: link, coordinator, store, enrolment and console."""

"""asyncsim: a laboratory for asynchronous optimization."""

"""Preconditioner forms, one file each, all with the interface of `forms.base`."""

"""Attribution graphs and their validation; built on the layers below, empty so far."""

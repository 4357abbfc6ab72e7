//! Scenarios that cut the network of a real cluster and judge the recorded history.

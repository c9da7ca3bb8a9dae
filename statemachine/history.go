package statemachine

// The events that the history has beside those of the machine. New refuses names like these.
const (
	eventCreate = "(create)"
	eventAdopt  = "(adopt)"
)

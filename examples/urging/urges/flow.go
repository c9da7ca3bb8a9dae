package urges

import (
	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/statemachine"
)

// State is where an urge is.
type State string

// The states of an urge.
const (
	Raised        State = "raised" // somebody urges; the assignee has not heard of it yet
	Pushed        State = "pushed"
	Undeliverable State = "undeliverable" // the push service does not know the assignee
)

// What the push service may say.
var (
	Deliver = statemachine.NewEvent[State]("deliver")
	Refuse  = statemachine.NewEvent[State]("refuse")
)

// Flow is the life of an urge. The window is no part of it: that is a matter of the clock, not of an event which somebody has to
// fire in time.
var Flow = statemachine.MustNew("urge",
	statemachine.Initial(Raised), statemachine.Final(Pushed, Undeliverable),
	statemachine.From(Raised).On(Deliver).To(Pushed).Setting("receipt"),
	statemachine.From(Raised).On(Refuse).To(Undeliverable).Setting("reason"))

// Urges is the flow over its table, for the workers, who are on pgx.
type Urges = statemachine.Binding[int64, State, pgx.Tx]

// Table is where the urges are.
var Table = statemachine.Table{Name: "urging.urge"}

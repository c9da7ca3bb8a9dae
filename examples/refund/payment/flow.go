package payment

import (
	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/statemachine"
)

// State is where a refund is.
type State string

// The states of a refund.
const (
	Requested State = "requested" // accepted; the bank has not said yet
	Paid      State = "paid"
	Refused   State = "refused" // by the bank
)

// What the bank may say.
var (
	Pay    = statemachine.NewEvent[State]("pay")
	Refuse = statemachine.NewEvent[State]("refuse")
)

// Flow is the life of a refund. Only the bank's word moves it, and it moves once.
var Flow = statemachine.MustNew("refund",
	statemachine.Initial(Requested), statemachine.Final(Paid, Refused),
	statemachine.From(Requested).On(Pay).To(Paid),
	statemachine.From(Requested).On(Refuse).To(Refused))

// Refunds is the flow over its table.
type Refunds = statemachine.Binding[int64, State, pgx.Tx]

var refundTable = statemachine.Table{Name: "shop.refund"}

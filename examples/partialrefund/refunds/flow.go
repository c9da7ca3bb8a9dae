package refunds

import (
	"github.com/jmoiron/sqlx"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/statemachine"
)

// State is where a refund is.
type State string

// The states of a refund.
const (
	Executing State = "executing" // accepted; the refund service has not said yet
	Agreed    State = "agreed"    // the same, and the seller's agreement is here
	Refunded  State = "refunded"
	Refused   State = "refused" // by the refund service
)

// What may happen to it.
var (
	Agree  = statemachine.NewEvent[State]("agree")
	Pay    = statemachine.NewEvent[State]("pay")
	Refuse = statemachine.NewEvent[State]("refuse")
)

// Flow is the life of a refund. An agreement that comes late changes nothing.
var Flow = statemachine.MustNew("partial refund",
	statemachine.Initial(Executing), statemachine.Final(Refunded, Refused),
	statemachine.From(Executing).On(Agree).To(Agreed),
	statemachine.From(Executing, Agreed).On(Pay).To(Refunded).Setting("serial"),
	statemachine.From(Executing, Agreed).On(Refuse).To(Refused).Setting("reason"),
	statemachine.From(Refunded, Refused).Ignore(Agree))

// Refunds is the flow over its table.
type Refunds = statemachine.Binding[string, State, *sqlx.Tx]

// Table is where the refunds are.
var Table = statemachine.Table{Name: "partialrefund.refund", ID: "apply_id"}

// Where rows are locked. Who locks both locks the order first, and so nobody waits for anybody in a circle.
var (
	orderRows  = dblock.Table{Name: "partialrefund.shop_order"}
	refundRows = dblock.Table{Name: "partialrefund.refund", ID: "apply_id"}
)

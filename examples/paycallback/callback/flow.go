package callback

import (
	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/statemachine"
)

// State is where an order is.
type State string

// The states of an order.
const (
	Unpaid State = "unpaid"
	Paid   State = "paid"
	Closed State = "closed" // given up before it was paid
)

// What moves an order.
var (
	Pay   = statemachine.NewEvent[State]("pay")
	Close = statemachine.NewEvent[State]("close")
)

// Flow is the life of an order, as far as its payment goes.
var Flow = statemachine.MustNew("order",
	statemachine.Initial(Unpaid), statemachine.Final(Paid, Closed),
	statemachine.From(Unpaid).On(Pay).To(Paid).Setting("transaction", "paid_at"),
	statemachine.From(Unpaid).On(Close).To(Closed))

// Orders is the flow over its table.
type Orders = statemachine.Binding[int64, State, pgx.Tx]

// Table is where orders are.
var Table = statemachine.Table{Name: "orders.purchase"}

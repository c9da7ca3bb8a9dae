package wallet

import (
	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/statemachine"
)

// Payment is whether an order is paid for.
type Payment string

// The states of a payment.
const (
	Unpaid Payment = "unpaid"
	Paid   Payment = "paid"
)

// Consumption is what has become of an order's callback.
type Consumption string

// The states of a consumption.
const (
	NotConsumed Consumption = "not consumed"
	Enqueued    Consumption = "enqueued" // it is confirmed, and a message is in the queue
	Consumed    Consumption = "consumed" // the wallet has the money
)

// The events.
var (
	Pay     = statemachine.NewEvent[Payment]("pay")
	Enqueue = statemachine.NewEvent[Consumption]("enqueue")
	Consume = statemachine.NewEvent[Consumption]("consume")
)

// PaymentFlow and ConsumptionFlow are two machines over one row, each with a column of its own.
var (
	PaymentFlow = statemachine.MustNew("wallet payment",
		statemachine.Initial(Unpaid), statemachine.Final(Paid),
		statemachine.From(Unpaid).On(Pay).To(Paid).Setting("paid_at"))

	ConsumptionFlow = statemachine.MustNew("wallet consumption",
		statemachine.Initial(NotConsumed), statemachine.Final(Consumed),
		statemachine.From(NotConsumed).On(Enqueue).To(Enqueued).Setting("transaction"),
		statemachine.From(Enqueued).On(Consume).To(Consumed),
		statemachine.From(Consumed).Ignore(Enqueue)) // a callback that comes late
)

// Payments and Consumptions are the machines over their columns.
type (
	Payments     = statemachine.Binding[string, Payment, pgx.Tx]
	Consumptions = statemachine.Binding[string, Consumption, pgx.Tx]
)

// Where the states are.
var (
	PaymentTable     = statemachine.Table{Name: "wechatpay.wallet_order", ID: "number", State: "payment"}
	ConsumptionTable = statemachine.Table{Name: "wechatpay.wallet_order", ID: "number", State: "consumption"}
)

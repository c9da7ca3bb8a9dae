package remit

import (
	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/statemachine"
)

// Flag is where a remittance is, by the numbers that the column has always had.
type Flag int16

// The flags.
const (
	New     Flag = 1
	Paid    Flag = 2
	Failed  Flag = 3 // refused by the bank
	Cancel  Flag = 4 // by us, before it was sent
	Bounced Flag = 5 // paid, and returned by the bank
	Reset   Flag = 6 // to be sent anew, by an operator's decision
	Unknown Flag = 7 // sent; nobody knows what became of it
	AtBank  Flag = 8 // sent; the bank is at it
	Illegal Flag = 9 // blocked, before it was sent
)

// String is the flag's name.
func (f Flag) String() string {
	return map[Flag]string{
		New: "new", Paid: "paid", Failed: "failed", Cancel: "cancelled", Bounced: "bounced", Reset: "reset",
		Unknown: "unknown", AtBank: "at the bank", Illegal: "illegal",
	}[f]
}

// What moves a remittance.
var (
	Send      = statemachine.NewEvent[Flag]("send")             // before the bank is called, under a reference that is stored with it
	Confirm   = statemachine.NewEvent[Flag]("bank: paid")       // the bank's answer to the call
	Refuse    = statemachine.NewEvent[Flag]("bank: refused")    // the bank's answer to the call
	NoAnswer  = statemachine.NewEvent[Flag]("no answer")        // or one that cannot be read
	FoundPaid = statemachine.NewEvent[Flag]("enquiry: paid")    // the enquiry's, as the next three
	FoundNot  = statemachine.NewEvent[Flag]("enquiry: refused") //
	FoundOpen = statemachine.NewEvent[Flag]("enquiry: at it")   //
	Resend    = statemachine.NewEvent[Flag]("enquiry: unknown") // the bank refuses the old reference from now on: a new one of the same send
	Bounce    = statemachine.NewEvent[Flag]("bounce")           // the bank's, days later
	Renew     = statemachine.NewEvent[Flag]("reset")            // an operator's, as the next two
	Withdraw  = statemachine.NewEvent[Flag]("cancel")           //
	Block     = statemachine.NewEvent[Flag]("block")            //
)

// Flow is the life of a remittance. Money leaves between Send or Resend and what follows, and from no other flag. [Unknown] is left by
// an enquiry only: no reset and no guess leads out of it.
var Flow = statemachine.MustNew("remittance",
	statemachine.Initial(New), statemachine.Final(Paid, Cancel, Illegal),

	statemachine.From(New, Reset).On(Send).To(AtBank).Setting("reference"),
	statemachine.From(AtBank).On(Confirm).To(Paid).Setting("serial"),
	statemachine.From(AtBank).On(Refuse).To(Failed).Setting("reason"),
	statemachine.From(AtBank).On(NoAnswer).To(Unknown),

	statemachine.From(Unknown, AtBank).On(FoundPaid).To(Paid).Setting("serial"),
	statemachine.From(Unknown, AtBank).On(FoundNot).To(Failed).Setting("reason"),
	statemachine.From(Unknown).On(FoundOpen).To(AtBank),
	statemachine.From(Unknown, AtBank).On(Resend).To(AtBank).Setting("reference"),

	statemachine.From(Paid).On(Bounce).To(Bounced).Reversal("returned by the bank, late"),
	statemachine.From(Failed, Bounced).On(Renew).To(Reset).Setting("send"),
	statemachine.From(New, Reset).On(Withdraw).To(Cancel),
	statemachine.From(New, Reset).On(Block).To(Illegal),
)

// Remittances is the flow over its table.
type Remittances = statemachine.Binding[string, Flag, pgx.Tx]

// Table is where remittances are.
var Table = statemachine.Table{Name: "remit.remittance", State: "flag", Since: "since"}

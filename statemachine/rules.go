package statemachine

import (
	"fmt"
	"slices"
	"time"
)

// Rule is one line of a definition, made by [Initial], [Final], [Former], [Require] or [From].
type Rule[S StateType] struct {
	add  func(*definition[S], edge[S])
	edge edge[S] // what Reversal, Setting and After say of the edges that a rule makes
	line string
}

// Initial names the states that rows are created in. At least one is required.
func Initial[S StateType](states ...S) Rule[S] {
	return Rule[S]{line: "Initial", add: func(d *definition[S], _ edge[S]) {
		d.see("Initial", states)
		d.m.initial = append(d.m.initial, states...)
	}}
}

// Final names the states that are not left. A state without a way out that is not final is a
// mistake, and so is a final one with a way out, unless that is a [Rule.Reversal].
func Final[S StateType](states ...S) Rule[S] {
	return Rule[S]{line: "Final", add: func(d *definition[S], _ edge[S]) {
		d.see("Final", states)
		d.m.final = append(d.m.final, states...)
	}}
}

// Former names states that earlier releases have left rows in and that nothing leads to any more: one that was given up, or has another name now.
// They keep their ways out, and the database keeps rows from coming into them. [New] reports one that can be reached. To rename a state:
//
//	statemachine.Former(Settled), statemachine.From(Settled).On(Rename).To(Paid),
//	statemachine.From(Settled, Paid).On(Refund).To(Refunded),
//
// first in programs that still move rows to Settled, with an edge to it and without Former; then as above; then fire Rename at the rows that are left
// ([Binding.FireMany]), so that their history says it; then leave Settled out, which [Binding.TriggerSQL] refuses as long as rows are in it. A repeat of an
// event that has led to Settled is known by its [Dedup] id from then on, and without one it is [ErrConflict].
func Former[S StateType](states ...S) Rule[S] {
	return Rule[S]{line: "Former", add: func(d *definition[S], _ edge[S]) {
		d.see("Former", states)
		d.m.former = append(d.m.former, states...)
	}}
}

// Require says which columns a row in a state has to have. Each way into the state must set
// them ([Rule.Setting]) or come from a state that requires them too; [New] reports the one that
// does not. [Binding.TriggerSQL] makes a CHECK of it, so that nobody else writes a row that lacks one; [Binding.Fire] at such a row
// fails with the server's 23514.
//
//	statemachine.Require(Paid, "paid_at")
func Require[S StateType](state S, columns ...string) Rule[S] {
	return Rule[S]{line: "Require", add: func(d *definition[S], _ edge[S]) {
		d.see("Require", []S{state})
		d.columns("Require", columns)
		d.m.require[state] = append(d.m.require[state], columns...)
	}}
}

// From begins a rule for one or several states.
func From[S StateType](states ...S) Source[S] { return Source[S]{states: states} }

// Source is a rule that still lacks its event.
type Source[S StateType] struct {
	states []S
	after  *time.Duration
}

// After makes the rule a matter of time as well: [Binding.Sweep] fires its event at rows that have been
// in the state for this long. It needs [Table.Since]. Microseconds at the finest, 100 years at the longest.
// The event may still be fired before that, as any other.
//
//	statemachine.From(Unpaid).After(15*time.Minute).On(Expire).To(Closed)
func (s Source[S]) After(d time.Duration) Source[S] {
	s.after = &d
	return s
}

// On names the event that leaves the states. The rule still lacks its target.
func (s Source[S]) On(ev Event[S]) Departure[S] { return Departure[S]{s, ev} }

// Ignore declares that the events do nothing in these states and that this is no mistake: a
// message that comes too late. Firing one there is answered with [Superseded] and leaves the row as it
// is.
func (s Source[S]) Ignore(events ...Event[S]) Rule[S] {
	return Rule[S]{line: "Ignore", add: func(d *definition[S], _ edge[S]) {
		d.see("From", s.states)
		if s.after != nil {
			d.find("After", "is said of what is ignored")
		}
		if len(events) == 0 {
			d.find("Ignore", "names no event")
		}
		for _, ev := range events {
			mv := d.event(ev)
			for _, from := range s.states {
				if slices.Contains(mv.ignored, from) {
					d.find(d.pair(from, ev), "is ignored twice")
					continue
				}
				mv.ignored = append(mv.ignored, from)
			}
		}
	}}
}

// Departure is a rule that still lacks its target.
type Departure[S StateType] struct {
	source Source[S]
	event  Event[S]
}

// To names the state that the event leads to.
func (p Departure[S]) To(target S) Rule[S] {
	return Rule[S]{add: func(d *definition[S], e edge[S]) {
		d.see("From", p.source.states)
		d.see("To", []S{target})
		if p.source.after != nil {
			e.after = *p.source.after
			d.checkAfter(e.after)
		}
		d.columns("Setting", e.columns)
		mv := d.event(p.event)
		for _, from := range p.source.states {
			e.from, e.to, e.event = from, target, p.event
			switch i := slices.Index(mv.sources, from); {
			case i >= 0 && mv.targets[i] != target:
				d.find(d.pair(from, p.event), fmt.Sprintf("leads to %q and to %q", textOf(mv.targets[i]), textOf(target)))
			case i >= 0:
				d.find(d.pair(from, p.event), "is declared twice")
			default:
				mv.sources = append(mv.sources, from)
				mv.targets = append(mv.targets, target)
				mv.edges = append(mv.edges, e)
			}
		}
	}}
}

// Reversal declares that this way out of a final state is meant, and why: a payment that the bank takes back
// weeks after it was settled. The state stays final for everything else.
//
//	statemachine.From(Paid).On(Bounce).To(Failed).Reversal("late return by the bank")
func (r Rule[S]) Reversal(why string) Rule[S] {
	r.edge.reversal = why
	if reason := fault(why, MaxName); reason != "" {
		r.edge.reversal = "?"
		return r.failing("Reversal", "has a reason that "+reason)
	}
	return r
}

// Setting declares that who fires this sets these columns, by [Set] or [SetExpr]. A call that does not is
// refused with [ErrInvalid] before anything is sent. Sweep fires an edge that needs columns with
// [SweepConfig.Options].
//
//	statemachine.From(Unpaid).On(Pay).To(Paid).Setting("paid_at")
func (r Rule[S]) Setting(columns ...string) Rule[S] {
	r.edge.columns = append(slices.Clone(r.edge.columns), columns...)
	if len(columns) == 0 {
		return r.failing("Setting", "names no column")
	}
	return r
}

// failing is a rule with something more to find fault with.
func (r Rule[S]) failing(part, reason string) Rule[S] {
	before := r.add
	r.add = func(d *definition[S], e edge[S]) {
		if before != nil {
			before(d, e)
		}
		d.find(part, reason)
	}
	return r
}

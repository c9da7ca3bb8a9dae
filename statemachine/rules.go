package statemachine

import (
	"fmt"
	"slices"
)

// Rule is one line of a definition, made by [Initial], [Final] or [From].
type Rule[S StateType] struct{ add func(*definition[S]) }

// Initial names the states that rows are created in. At least one is required.
func Initial[S StateType](states ...S) Rule[S] {
	return Rule[S]{func(d *definition[S]) {
		d.see("Initial", states)
		d.m.initial = append(d.m.initial, states...)
	}}
}

// Final names the states that are never left. A state without a way out that is not final is a
// mistake, and so is a final one with a way out.
func Final[S StateType](states ...S) Rule[S] {
	return Rule[S]{func(d *definition[S]) {
		d.see("Final", states)
		d.m.final = append(d.m.final, states...)
	}}
}

// From begins a rule for one or several states.
func From[S StateType](states ...S) Source[S] { return Source[S]{states} }

// Source is a rule that still lacks its event.
type Source[S StateType] struct{ states []S }

// On names the event that leaves the states. The rule still lacks its target.
func (s Source[S]) On(ev Event[S]) Departure[S] { return Departure[S]{s.states, ev} }

// Ignore declares that the events do nothing in these states and that this is no mistake: a
// message that comes too late. Firing one there is answered with [Superseded] and leaves the row as it
// is.
func (s Source[S]) Ignore(events ...Event[S]) Rule[S] {
	return Rule[S]{func(d *definition[S]) {
		d.see("From", s.states)
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
	states []S
	event  Event[S]
}

// To names the state that the event leads to.
func (p Departure[S]) To(target S) Rule[S] {
	return Rule[S]{func(d *definition[S]) {
		d.see("From", p.states)
		d.see("To", []S{target})
		mv := d.event(p.event)
		for _, from := range p.states {
			switch i := slices.Index(mv.sources, from); {
			case i >= 0 && mv.targets[i] != target:
				d.find(d.pair(from, p.event), fmt.Sprintf("leads to %q and to %q", textOf(mv.targets[i]), textOf(target)))
			case i >= 0:
				d.find(d.pair(from, p.event), "is declared twice")
			default:
				mv.sources = append(mv.sources, from)
				mv.targets = append(mv.targets, target)
			}
		}
	}}
}

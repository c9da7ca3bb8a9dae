package statemachine

import (
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"
)

// The longest that a name may be, in bytes.
const (
	MaxName  = 100 // of a machine, an event or a state
	MaxDedup = 255
	MaxActor = 255
)

// New checks a definition. The error joins everything that is wrong with it, each part an
// [*InvalidError]: an event with two targets from one state, a state that cannot be reached, a
// dead end that is not [Final], a final state with a way out, an event that is ignored where
// it is allowed, names that cannot be stored.
//
// The name is part of the history: two machines over the same rows need two names.
func New[S StateType](name string, rules ...Rule[S]) (*Machine[S], error) {
	d := &definition[S]{m: &Machine[S]{name: name, events: map[string]*moves[S]{}}}
	if reason := fault(name, MaxName); reason != "" {
		d.find("name", reason)
	}
	for i, r := range rules {
		if r.add == nil {
			d.find(fmt.Sprintf("rule %d", i+1), "is empty: use Initial, Final or From")
			continue
		}
		r.add(d)
	}
	d.derive()
	d.check()
	if len(d.findings) > 0 {
		return nil, fmt.Errorf("statemachine: new %q: %w", name, errors.Join(d.findings...))
	}
	return d.m, nil
}

// MustNew is [New] for a package variable. It panics where New returns an error.
func MustNew[S StateType](name string, rules ...Rule[S]) *Machine[S] {
	m, err := New(name, rules...)
	if err != nil {
		panic(err)
	}
	return m
}

// definition is a machine in the making, with what was found wrong.
type definition[S StateType] struct {
	m        *Machine[S]
	findings []error
}

func (d *definition[S]) find(what, reason string) {
	d.findings = append(d.findings, &InvalidError{Part: what, Reason: reason})
}

func (d *definition[S]) pair(from S, ev Event[S]) string {
	return fmt.Sprintf("event %q in state %q", ev.name, textOf(from))
}

// see notes the states that a rule mentions.
func (d *definition[S]) see(rule string, states []S) {
	if len(states) == 0 {
		d.find(rule, "names no state")
	}
	for _, s := range states {
		if slices.Contains(d.m.states, s) {
			continue
		}
		if reason := fault(textOf(s), MaxName); reason != "" {
			d.find(fmt.Sprintf("state %q", textOf(s)), reason)
		}
		d.m.states = append(d.m.states, s)
	}
}

func (d *definition[S]) event(ev Event[S]) *moves[S] {
	mv := d.m.events[ev.name]
	if mv == nil {
		if reason := fault(ev.name, MaxName); reason != "" {
			d.find(fmt.Sprintf("event %q", ev.name), reason)
		}
		mv = &moves[S]{}
		d.m.events[ev.name] = mv
		d.m.order = append(d.m.order, ev.name)
	}
	return mv
}

// derive finds out what a row's state says about each event. "This event was applied" follows
// from the state alone only if nothing else leads there, creation included.
func (d *definition[S]) derive() {
	for _, name := range d.m.order {
		mv := d.m.events[name]
		for _, to := range mv.targets {
			switch {
			case slices.Contains(mv.sources, to):
				mv.overlap = true
			case !slices.Contains(mv.idle, to):
				mv.idle = append(mv.idle, to)
				mv.shared = mv.shared || slices.Contains(d.m.initial, to) || d.entersToo(name, to)
			}
		}
	}
}

// entersToo says whether another event than name leads to a state.
func (d *definition[S]) entersToo(name string, to S) bool {
	for other, mv := range d.m.events {
		if other != name && slices.Contains(mv.targets, to) {
			return true
		}
	}
	return false
}

func (d *definition[S]) check() {
	if len(d.m.initial) == 0 {
		d.find("Initial", "is missing: name the states that rows are created in")
	}
	for _, name := range d.m.order {
		d.checkEvent(Event[S]{name})
	}
	reached := d.reachable()
	for _, s := range d.m.states {
		exits := len(d.m.Allowed(s)) > 0
		what := fmt.Sprintf("state %q", textOf(s))
		if len(d.m.initial) > 0 && !slices.Contains(reached, s) {
			d.find(what, "cannot be reached from an initial state")
		}
		switch {
		case exits && d.m.IsFinal(s):
			d.find(what, "is final and has a way out")
		case !exits && !d.m.IsFinal(s):
			d.find(what, "has no way out and is not final")
		}
	}
}

func (d *definition[S]) checkEvent(ev Event[S]) {
	mv := d.m.events[ev.name]
	if len(mv.sources) == 0 {
		d.find(fmt.Sprintf("event %q", ev.name), "is ignored but never moves anything")
	}
	for _, s := range mv.ignored {
		switch {
		case slices.Contains(mv.sources, s):
			d.find(d.pair(s, ev), "is both allowed and ignored")
		case slices.Contains(mv.targets, s):
			d.find(d.pair(s, ev), "is ignored in its own target, where a repeat is answered with AlreadyApplied")
		}
	}
}

// reachable lists what the initial states lead to, themselves included.
func (d *definition[S]) reachable() []S {
	reached := slices.Clone(d.m.initial)
	for i := 0; i < len(reached); i++ {
		for _, ev := range d.m.Allowed(reached[i]) {
			if to, ok := d.m.Next(reached[i], ev); ok && !slices.Contains(reached, to) {
				reached = append(reached, to)
			}
		}
	}
	return reached
}

// fault says what is wrong with a name, or nothing.
func fault(s string, most int) string {
	switch {
	case s == "":
		return "is empty"
	case len(s) > most:
		return fmt.Sprintf("has %d bytes, the limit is %d", len(s), most)
	case !utf8.ValidString(s):
		return "is not valid UTF-8"
	}
	for i, r := range s {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return fmt.Sprintf("has the control character %U at byte %d", r, i)
		}
	}
	return ""
}

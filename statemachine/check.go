package statemachine

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
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
// dead end that is not [Final], a final state with a way out that is no [Rule.Reversal], an event that is ignored where
// it is allowed, a state that [Require] wants a column for which some way into it does not set, a
// time-out that another one is always before, names that cannot be stored.
//
// The name is part of the history: two machines over the same rows need two names.
func New[S StateType](name string, rules ...Rule[S]) (*Machine[S], error) {
	d := &definition[S]{m: &Machine[S]{name: name, events: map[string]*moves[S]{}, require: map[S][]string{}}}
	if reason := fault(name, MaxName); reason != "" {
		d.find("name", reason)
	}
	for i, r := range rules {
		if r.add == nil {
			d.find(fmt.Sprintf("rule %d", i+1), "is empty: use Initial, Final or From")
			continue
		}
		if r.line != "" && (r.edge.reversal != "" || len(r.edge.columns) > 0) {
			d.find(r.line, "leads nowhere, so it has no Reversal and no Setting")
		}
		r.add(d, r.edge)
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
		if strings.HasPrefix(ev.name, "(") {
			d.find(fmt.Sprintf("event %q", ev.name), "begins with a parenthesis, as the history's own do: "+eventCreate)
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
		switch {
		case d.m.IsFormer(s) && (slices.Contains(d.m.initial, s) || d.entersToo("", s)):
			d.find(what, "is a former one, and something leads there all the same")
		case len(d.m.initial) > 0 && !slices.Contains(reached, s):
			d.find(what, "cannot be reached from an initial state: if only rows of before are in it, say Former")
		}
		switch {
		case exits && d.m.IsFinal(s):
			d.checkReversals(what, s)
		case !exits && !d.m.IsFinal(s):
			d.find(what, "has no way out and is not final")
		}
		d.checkTimers(what, s)
		d.checkRequired(what, s)
	}
}

// checkReversals finds the ways out of a final state that nobody has explained.
func (d *definition[S]) checkReversals(what string, s S) {
	for _, ev := range d.m.Allowed(s) {
		if !d.m.IsReversal(s, ev) {
			d.find(what, fmt.Sprintf("is final and has a way out by %q: if that is meant, say Reversal", ev.name))
		}
	}
}

// checkTimers finds what never comes: the first time-out takes the row out of the state, or
// starts its time anew.
func (d *definition[S]) checkTimers(what string, s S) {
	timed := ""
	for _, ev := range d.m.Allowed(s) {
		if _, ok := d.m.After(s, ev); ok && timed != "" {
			d.find(what, fmt.Sprintf("has two time-outs, %q and %q: the shorter is always before the longer", timed, ev.name))
		} else if ok {
			timed = ev.name
		}
	}
}

// checkRequired finds the ways into a state on which a column that it requires is set by nobody.
func (d *definition[S]) checkRequired(what string, s S) {
	for _, column := range d.m.require[s] {
		for _, name := range d.m.order {
			mv := d.m.events[name]
			for i, to := range mv.targets {
				if to == s && !slices.Contains(mv.edges[i].columns, column) && !slices.Contains(d.m.require[mv.sources[i]], column) {
					d.find(what, fmt.Sprintf("requires %q, which %s does not set: say Setting, or require it there too", column, d.pair(mv.sources[i], Event[S]{name})))
				}
			}
		}
	}
}

// checkAfter refuses times that an interval of Postgres does not hold exactly, or that are none.
func (d *definition[S]) checkAfter(after time.Duration) {
	const most = 100 * 365 * 24 * time.Hour
	if after < time.Microsecond || after > most || after%time.Microsecond != 0 {
		d.find("After", fmt.Sprintf("is %v: it has to be whole microseconds, 1 at least and 100 years at most", after))
	}
}

// columns refuses the names of columns that cannot be.
func (d *definition[S]) columns(rule string, names []string) {
	for _, name := range names {
		if reason := fault(name, maxIdentifier); reason != "" {
			d.find(fmt.Sprintf("%s(%q)", rule, name), reason)
		}
	}
	if len(names) == 0 && rule == "Require" {
		d.find(rule, "names no column")
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

// reachable lists what the initial states and the former ones lead to, themselves included.
func (d *definition[S]) reachable() []S {
	reached := slices.Concat(d.m.initial, d.m.former)
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

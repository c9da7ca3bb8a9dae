package statemachine

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// difference says what the function allows that the machine does not, and the other way round.
func (v *verifier) difference(said string) string {
	var has comment
	if json.Unmarshal([]byte(said), &has) != nil || has.Pgonce == 0 {
		return "has another text, and a comment that is not of the migration"
	}
	parts := []string{fmt.Sprintf("is of hash %s, this machine is %s", has.Hash, v.Hash)}
	add := func(what string, from, without []string) {
		var only []string
		for _, s := range from {
			if !slices.Contains(without, s) {
				only = append(only, s)
			}
		}
		if len(only) > 0 {
			parts = append(parts, what+" "+strings.Join(only, ", "))
		}
	}
	add("it lacks the edges", arrows(v.Edges), arrows(has.Edges))
	add("it still has the edges", arrows(has.Edges), arrows(v.Edges))
	add("it does not require", columnsOf(v.Require), columnsOf(has.Require))
	add("it still requires", columnsOf(has.Require), columnsOf(v.Require))
	add("it lacks the states", v.States, has.States)
	add("it still has the states", has.States, v.States)
	add("it does not let rows begin in", v.Initial, has.Initial)
	add("it still lets rows begin in", has.Initial, v.Initial)
	if has.Machine != v.Machine {
		parts = append(parts, fmt.Sprintf("it is of machine %q", has.Machine))
	}
	return strings.Join(parts, "; ")
}

func arrows(edges [][2]string) []string {
	out := make([]string, len(edges))
	for i, e := range edges {
		out[i] = e[0] + " -> " + e[1]
	}
	return out
}

// columnsOf are states and their columns as they are shown.
func columnsOf(pairs [][2]string) []string {
	out := make([]string, len(pairs))
	for i, p := range pairs {
		out[i] = fmt.Sprintf("%s in %s", quote(p[1]), p[0])
	}
	return out
}

//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"text/tabwriter"
	"time"
)

// report is what -json writes.
type report struct {
	About about `json:"about"`
	Rows  []row `json:"rows"`
}

// about says what was measured, and with what.
type about struct {
	When       time.Time `json:"when"`
	Commit     string    `json:"commit"`
	Program    string    `json:"program,omitempty"` // of -program: what it says of itself
	Go         string    `json:"go"`
	System     string    `json:"system"`
	Processors int       `json:"processors"`
	NATSServer string    `json:"nats_server"`
	NATS       string    `json:"nats"`
	Rounds     int       `json:"rounds"`
	Scale      float64   `json:"scale"`
	Full       bool      `json:"full"`
}

func (a about) print(w io.Writer) {
	fmt.Fprintf(w, "commit %s, %s, %s, %d processors, nats-server %s, nats %s; medians of %d rounds, scale %v", a.Commit, a.Go,
		a.System, a.Processors, a.NATSServer, a.NATS, a.Rounds, a.Scale)
	if a.Full {
		fmt.Fprint(w, ", full")
	}
	fmt.Fprintln(w)
	if a.Program != "" {
		fmt.Fprintln(w, "measured is", a.Program)
	}
}

// row is one figure of the table, beside what it is compared with, if it is.
type row struct {
	Section   string  `json:"section"`
	Case      string  `json:"case"`
	What      string  `json:"what"`
	Value     float64 `json:"value"`
	Unit      string  `json:"unit"`
	Reference *figure `json:"reference,omitempty"`
	Ratio     float64 `json:"ratio,omitempty"` // to the reference
	Goal      *goal   `json:"goal,omitempty"`
	Met       *bool   `json:"met,omitempty"`
}

// figure is what somebody else reached.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
}

// goal is a bound for the figure, or for its ratio where there is one.
type goal struct {
	least bool
	bound float64
}

func atLeast(bound float64) *goal { return &goal{true, bound} }
func atMost(bound float64) *goal  { return &goal{false, bound} }

func (g *goal) met(x float64) bool {
	if g.least {
		return x >= g.bound
	}
	return x <= g.bound
}

func (g *goal) String() string {
	if g.least {
		return "≥ " + number(g.bound)
	}
	return "≤ " + number(g.bound)
}

// MarshalJSON names the bound in words.
func (g *goal) MarshalJSON() ([]byte, error) {
	if g.least {
		return json.Marshal(map[string]float64{"at_least": g.bound})
	}
	return json.Marshal(map[string]float64{"at_most": g.bound})
}

// compared is a row whose figure is the median of ours. With figures of a reference, the
// ratio is the median of the rounds' ratios.
func compared(section, of, what, unit string, ours []float64, reference string, theirs []float64, g *goal) row {
	r := row{Section: section, Case: of, What: what, Value: median(ours), Unit: unit}
	x := r.Value
	if len(theirs) > 0 {
		r.Reference = &figure{reference, median(theirs)}
		ratios := make([]float64, min(len(ours), len(theirs)))
		for i := range ratios {
			ratios[i] = ours[i] / theirs[i]
		}
		r.Ratio = median(ratios)
		x = r.Ratio
	}
	if g != nil {
		met := g.met(x)
		r.Goal, r.Met = g, &met
	}
	return r
}

// printRows prints a section's part of the table.
func printRows(w io.Writer, rows []row) {
	if len(rows) == 0 {
		return
	}
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tab, "\nsection\tcase\twhat\tfigure\t\treference\t\tratio\tgoal\t")
	for _, r := range rows {
		name, value, ratio, bound, met := "", "", "", "", ""
		if r.Reference != nil {
			name, value, ratio = r.Reference.Name, number(r.Reference.Value), number(r.Ratio)
		}
		if r.Goal != nil {
			bound, met = r.Goal.String(), "missed"
			if *r.Met {
				met = "met"
			}
		}
		fmt.Fprintf(tab, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Section, r.Case, r.What, number(r.Value), r.Unit, name,
			value, ratio, bound, met)
	}
	tab.Flush()
}

// number has three digits or more, as a person reads them.
func number(x float64) string {
	switch a := math.Abs(x); {
	case a == math.Trunc(a) && a < 1e15 || a >= 1000:
		return fmt.Sprintf("%.0f", x)
	case a >= 100:
		return fmt.Sprintf("%.1f", x)
	case a >= 10:
		return fmt.Sprintf("%.2f", x)
	default:
		return fmt.Sprintf("%.3f", x)
	}
}

// median is the middle one; of an even number, the mean of the two in the middle.
func median(list []float64) float64 {
	if len(list) == 0 {
		return math.NaN()
	}
	s := sorted(list)
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// percentile is the smallest figure that so many of a hundred do not exceed.
func percentile(list []float64, p float64) float64 {
	if len(list) == 0 {
		return math.NaN()
	}
	s := sorted(list)
	return s[max(0, int(math.Ceil(p/100*float64(len(s))))-1)]
}

package schema_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"zulip-nats/schema"
)

var write = flag.Bool("write", false, "write the coverage into docs/schemas.md instead of comparing it")

// TestCoverage compares what docs/schemas.md says was checked with what there is to
// check: the types, their ops, and how many events of each.
func TestCoverage(t *testing.T) {
	captured, examples := map[string]int{}, map[string]int{}
	nCaptured, nExamples, types, pairs, records := 0, 0, 0, 0, 0
	for _, e := range samples(t) {
		if e.captured {
			captured[e.kind()]++
			nCaptured++
		} else {
			examples[e.kind()]++
			nExamples++
		}
	}
	var table strings.Builder
	table.WriteString("| type | ops, and how many events of each are checked: captured + one for each shape |\n|---|---|\n")
	for _, s := range schema.All() {
		if s.Record {
			records++
			continue
		}
		types++
		var cells []string
		for _, op := range append(slices.Clone(s.Ops), "")[:max(len(s.Ops), 1)] {
			pairs++
			kind := s.Name + "/" + op
			cells = append(cells, strings.TrimSpace(fmt.Sprintf("%s %d + %d", op, captured[kind], examples[kind])))
		}
		fmt.Fprintf(&table, "| `%s` | %s |\n", s.Name, strings.Join(cells, ", "))
	}
	want := fmt.Sprintf("%d types with %d pairs of type and op, and %d records. Checked are %d events: %d as a server 10.2 sent them (messages of "+
		"history\namong them), and %d that show one shape each, most of what such a server does not send.\n\n%s", types, pairs, records, nCaptured+nExamples, nCaptured,
		nExamples, table.String())

	const file, begin, end = "../docs/schemas.md", "<!-- coverage -->\n", "<!-- end -->"
	doc, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(doc), begin)
	has, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the coverage", file)
	}
	if *write {
		if err := os.WriteFile(file, []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if strings.ReplaceAll(has, "\r", "") != want {
		t.Errorf("%s says something else than what is checked, which is:\n%s", file, want)
	}
}

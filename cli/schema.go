package cli

import (
	"fmt"
	"slices"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"zulip-nats/poller"
	"zulip-nats/redact"
	"zulip-nats/schema"
)

// schema prints what bodies look like, for whoever writes a service.
func (a *app) schema() *urfave.Command {
	var all bool
	options := []*option{
		opt("", "all", "one schema for all that a stream holds, instead of the list of names", "", truth(&all), yes),
	}
	return &urfave.Command{
		Name:      "schema",
		Usage:     "print the JSON Schema of a type of events, or of a record",
		UsageText: "zulip-nats schema [--all] [TYPE]",
		ArgsUsage: "[TYPE]",
		Description: "TYPE is a type of Zulip's events, as in subjects (message, reaction, ...), or a record of the bridge's " +
			"own, as in the header Bridge-Record (queue, gap-opened, ...). Without it: all names, with the ops of each.\n" +
			"The schemas are open: what newer servers add is good.",
		Flags: flags(options),
		Action: func(u *urfave.Context) error {
			if err := parse(options); err != nil {
				return err
			}
			name := u.Args().First()
			switch {
			case u.NArg() > 1 && strings.HasPrefix(u.Args().Get(1), "-"):
				return usageErrorf("schema takes options before the TYPE: zulip-nats schema --all")
			case u.NArg() > 1:
				return usageErrorf("schema takes one TYPE, and %d words are given: `zulip-nats schema` lists the names, and "+
					"`zulip-nats schema --all` prints all schemas as one", u.NArg())
			case all && name != "":
				return usageErrorf("--all and a TYPE are two things to print: give one of them")
			case all:
				_, err := a.stdout.Write(schema.Bundle())
				return err
			case name != "":
				s, ok := schema.Of(name)
				if !ok {
					return usageErrorf("there is no schema of %q (is %s meant?): `zulip-nats schema` lists the names",
						redact.Text(name), nearSchema(name))
				}
				_, err := a.stdout.Write(s.Text)
				return err
			}
			return a.listSchemas()
		},
	}
}

func (a *app) listSchemas() error {
	var b strings.Builder
	wide := len(slices.MaxFunc(schema.Names(), func(a, b string) int { return len(a) - len(b) }))
	fmt.Fprintf(&b, "%-*s  %s\n", wide, "TYPE", "OPS")
	for _, s := range schema.All() {
		what := strings.Join(s.Ops, ", ")
		if s.Record {
			what = "(a record of the bridge's own)"
		}
		b.WriteString(strings.TrimRight(fmt.Sprintf("%-*s  %s", wide, s.Name, what), " ") + "\n")
	}
	_, err := fmt.Fprint(a.stdout, b.String())
	return err
}

// nearSchema is the name that a word is likely to mean: the beginning of a record's name
// or one that is misspelt a little, else a type of events. A subject stands for its last
// token.
func nearSchema(word string) string {
	word = strings.ToLower(word[strings.LastIndexByte(word, '.')+1:])
	var records []string
	for _, s := range schema.All() {
		if s.Record {
			records = append(records, s.Name)
			if word != "" && strings.HasPrefix(s.Name, word) {
				return s.Name
			}
		}
	}
	if like := near(word, records); like != "" {
		return like
	}
	like, _ := poller.NearestType(word)
	return like
}

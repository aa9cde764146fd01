package cli

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"zulip-nats/logevent"
	"zulip-nats/poller"
	"zulip-nats/redact"
)

// hidden stands for a value that must not be shown. In a file it is a complaint.
const hidden = "(hidden)"

// showConfig prints what `run` would do with the same options.
func (a *app) showConfig() *urfave.Command {
	c := defaults()
	s := newSettings(c.options())
	return &urfave.Command{
		Name:      "config",
		Usage:     "print the settings that are in force for run, and where each comes from",
		UsageText: "zulip-nats config [--config FILE | --zuliprc FILE] [options of run]",
		Description: "Takes the options of run, reads what run would read, connects to nothing, and prints a file for --config: " +
			"each value with where it comes from, and what is not given as a comment. Secrets are " + hidden + ".\nThe file of " +
			"--config has sections, and lines `key = value`. A key is the option of the same name:\n" +
			"  [nats]          NATS, and several instances: nats-url, lease-ttl, ...\n" +
			"  [stream]        storing, for all realms: max-age, erase-deleted, ...\n" +
			"  [queue]         what the queue holds, and after a lost queue, for all realms: event-types, ...\n" +
			"  [log], [http]   log-level, log-format; http, pprof\n" +
			"  [realm \"NAME\"]  one organization, NAME is its name in subjects: zuliprc = FILE, or email, key (or key_file) and " +
			"site; and all options of a realm\n" +
			"A realm's own section counts first, then the flag, the variable, [stream] and [queue]; for the process the flag, " +
			"the variable, the file.\nA path begins at the folder of the file, or with ~/. Comments begin with # or ;, behind a " +
			"value with a blank before. A value with such a mark in it, or in quotes that belong to it, stands between " +
			"backquotes. % and \\ mean nothing.\nA file with a key or a password in it must be closed to others: chmod 600.\n" +
			"Exit codes: 0, or 78 and all that is wrong with the file; 2 usage.",
		Flags: flags(s.options),
		Action: func(u *urfave.Context) error {
			if _, err := s.read(); err != nil {
				return err
			}
			log := newLog(a.stderr, s.last.c.LogFormat, s.last.c.LogLevel)
			if unknown := unknownVariables(u.App.Commands); len(unknown) > 0 {
				logevent.VariablesUnknown.Warn(log).Msgf("no option has these variables, and nothing comes of them: %s",
					strings.Join(unknown, ", "))
			}
			s.warn(log)
			text, err := s.last.print()
			if err != nil {
				return err
			}
			_, err = io.WriteString(a.stdout, text)
			return err
		},
	}
}

// printer writes settings as a file of ours.
type printer struct{ strings.Builder }

func (p *printer) line(format string, v ...any) { fmt.Fprintf(p, format+"\n", v...) }

// print is a good reading as a file.
func (r *reading) print() (string, error) {
	p := &printer{}
	p.line("; What zulip-nats run does with these options. This can be a file for --config, once each %s is written in.", hidden)
	p.line("; A line that begins with ; is what holds where nothing is given.")
	c := defaults()
	options := c.options()
	for _, kind := range []string{"nats", "log", "http"} {
		p.line("\n[%s]", kind)
		for _, o := range options {
			if sections := sectionsOf(o); len(sections) > 0 && sections[0] == kind {
				p.option(o, r.process)
			}
		}
		if r.c.Context != "" && kind == "nats" {
			p.line("; What the NATS context says comes behind all that is given here.")
		}
	}
	for i := range r.c.Realms {
		realm, origins := &r.c.Realms[i], r.realms[i]
		account, from, err := realm.Account.Load()
		if err != nil && realm.Where == "" {
			return "", err
		}
		name, why := realm.Name, ""
		if r.file == nil && origins["realm"].word == "" {
			named, err := realmOf("", account.Site)
			if err != nil {
				return "", err
			}
			name, why = named.String(), " ; its name is from its site"
		}
		p.line("\n[realm %q]%s", name, why)
		p.account(realm, origins, account, from, err)
		for _, o := range options {
			if sections := sectionsOf(o); len(sections) > 0 && sections[0] == "realm" {
				p.option(o, origins)
			}
		}
	}
	return p.String(), nil
}

// option writes one setting.
func (p *printer) option(o *option, origins map[string]origin) {
	if w, given := origins[o.Name]; given {
		p.value(o.Name, w.word, w.source())
		return
	}
	value := cmp.Or(o.DefaultText, "none")
	if o.isBool {
		value = "false"
	}
	switch o.Name {
	case "client-gravatar":
		value = "true"
	case "insecure":
		value = "as the zuliprc says"
	}
	p.line("; %s = %s ; from default", o.Name, value)
}

// source is where a word comes from, for people.
func (w origin) source() string {
	switch {
	case w.line > 0:
		return w.from
	case strings.HasPrefix(w.from, "--"):
		return "flag " + w.from
	}
	return "variable " + w.from
}

// value writes a line for a value, in a way that is read as the same value again.
func (p *printer) value(name, value, from string) {
	if isPath(name, value) {
		value = absolute(value)
	}
	text, ok := written(name, shownValue(name, value))
	if !ok {
		p.line("; %s = %q ; from %s, and it cannot stand in a file like this", name, value, from)
		return
	}
	p.line("%s = %s ; from %s", name, text, from)
}

// shownValue is the value of a key as it may be printed.
func shownValue(name, value string) string {
	switch {
	case secretKey(name, value), redact.Text(value) != value && !isPath(name, value):
		return hidden
	case isPath(name, value) && redact.Path(value) != value:
		return hidden
	case (name == "site" || name == "moved-from") && redact.URL(value) != strings.TrimRight(value, "/"):
		return hidden // a path may be one, too
	}
	return value
}

// written is a value as it stands in a file, with backquotes where it needs them. It is
// false for one that cannot stand there.
func written(name, value string) (string, bool) {
	if value == hidden {
		return value, true
	}
	f := &configFile{}
	if _, cut := cutComment(value); !cut && value == strings.TrimSpace(value) && f.plain(0, name, value) &&
		!strings.HasPrefix(value, "`") {
		return value, !strings.ContainsFunc(value, unreadable)
	}
	value = "`" + value + "`"
	return value, f.plain(0, name, value+" ; from") && !strings.ContainsFunc(value, unreadable)
}

// account writes who we are to Zulip. err is why that cannot be read.
func (p *printer) account(r *RealmConfig, origins map[string]origin, a poller.Account, from map[string]string, err error) {
	if r.Account.Inline != nil {
		for _, name := range poller.InlineNames() {
			if w, given := origins[name]; given {
				p.value(name, w.word, w.source())
			}
		}
		return
	}
	values := map[string]string{"email": a.Email, "site": a.Site, "key": a.Key}
	for _, name := range []string{"email", "key", "site"} {
		if strings.HasPrefix(from[name], "the variable ") { // a zuliprc alone does not say it
			for _, name := range []string{"email", "key", "site"} {
				p.value(name, values[name], strings.TrimPrefix(from[name], "the "))
			}
			return
		}
	}
	source := "default"
	if w, given := origins["zuliprc"]; given {
		source = w.source()
	} else if r.Where == "" && os.Getenv("ZULIP_CONFIG") != "" {
		source = "variable ZULIP_CONFIG"
	}
	p.value("zuliprc", r.Account.Path(), source)
	if err != nil {
		p.line("; its account cannot be read now: %s", err)
		return
	}
	p.line("; email = %s ; from %s", shownValue("email", a.Email), from["email"])
	p.line("; site = %s ; from %s", redact.URL(a.Site), from["site"])
}

package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/rs/zerolog"
	urfave "github.com/urfave/cli/v2"

	"zulip-nats/monitor"
	"zulip-nats/redact"
	"zulip-nats/service"
	"zulip-nats/stream"
	"zulip-nats/subjects"
	"zulip-nats/tail"
)

// watchEvery lies between two looks of --watch.
const watchEvery = 2 * time.Second

func (a *app) status() *urfave.Command {
	c := defaults()
	l := looker{app: a, c: &c, timeout: 2 * time.Second}
	const category = "Status"
	options := []*option{
		opt(category, "realm", "`NAMES` to show, with commas between; each of them must be served", "all that answer",
			realmNames(&l.realms), many),
		opt(category, "json", "a JSON document instead of a table", "", truth(&l.json), yes),
		opt(category, "watch", "look again every 2 s, until Ctrl-C", "", truth(&l.watch), yes),
		opt(category, "timeout", "`TIME` for the connection, and again for the answers, of which half is waited for", "2s",
			duration(&l.timeout, 100*time.Millisecond, time.Minute)),
	}
	options = append(options, c.busOptions()...)
	return &urfave.Command{
		Name:      "status",
		Usage:     "find every bridge on the bus, and say how it is",
		UsageText: "zulip-nats status [--nats-url URL] [--realm NAMES] [--json] [--watch] [--timeout TIME] [options]",
		Description: "Asks over NATS, and shows who answers: a line for each realm of each instance. RATE is what was " +
			"stored each second between two looks, which lie half of --timeout apart, or 2 s with --watch. An instance " +
			"that does not answer is not known: name the realms that must be there with --realm.\nExit codes: 0 each " +
			"realm is served (an instance leads, and does its job), or --watch was ended; 1 one is not, or nobody " +
			"answers; 2 usage; 78 configuration.",
		Flags: flags(options),
		Action: func(u *urfave.Context) error {
			if err := errors.Join(parse(options), c.check()); err != nil {
				return err
			}
			_, terminal := terminalOf(a.stdout)
			l.terminal = terminal && !l.json
			return l.run(u.Context)
		},
	}
}

// busOptions are those that say where NATS is and who we are, for commands that ask over it
// and need no JetStream.
func (c *Config) busOptions() (options []*option) {
	for _, o := range c.settings() {
		if strings.HasPrefix(o.Name, "nats-") && !strings.HasPrefix(o.Name, "nats-js-") {
			if o.Name == "nats-url" {
				o.DefaultText = "127.0.0.1, at --nats-port"
			}
			options = append(options, o)
		}
	}
	return options
}

// realmNames takes the names of realms, with commas between.
func realmNames(to *[]string) func(string) error {
	return func(s string) error {
		if err := list(to)(s); err != nil {
			return err
		}
		for _, name := range *to {
			if _, err := subjects.ParseRealm(name); err != nil {
				return err
			}
		}
		return nil
	}
}

// looker is one run of `status`.
type looker struct {
	*app
	c                     *Config
	realms                []string // to show; empty: all
	json, watch, terminal bool
	timeout               time.Duration
	before                map[string]amount // of the look before, by instance and realm
}

// amount is how much was stored by a moment.
type amount struct {
	at     time.Time
	stored uint64
}

// statusReport is the document of --json, which scripts rely on.
type statusReport struct {
	OK     bool           `json:"ok"` // there is a realm, and each is served
	Time   time.Time      `json:"time"`
	Realms []statusRealm  `json:"realms"`
	Silent []statusSilent `json:"silent,omitempty"`
}

type statusRealm struct {
	Realm     string           `json:"realm"`
	Served    bool             `json:"served"` // an instance leads, and does its job
	Instances []statusInstance `json:"instances"`
}

// statusInstance is one realm of one instance, with the fields of /status.
type statusInstance struct {
	Instance string `json:"instance"`
	Version  string `json:"version"`
	monitor.RealmReport
	// PerSecond is what was stored between the last two looks, events and messages read
	// back; absent where nobody leads, or there was one look.
	PerSecond *float64 `json:"stored_per_second,omitempty"`
}

// statusSilent is an instance that answers, and cannot say how it is.
type statusSilent struct {
	Instance string `json:"instance"`
	Why      string `json:"why"`
}

// run is the command, once its settings are known.
func (l *looker) run(ctx context.Context) error {
	c := l.c
	c.NATS.URL = cmp.Or(c.NATS.URL, fmt.Sprintf("nats://127.0.0.1:%d", c.NATSPort)) // that of the embedded server
	conn, err := connect(ctx, c, zerolog.Nop())
	if err != nil {
		return err
	}
	defer conn.Close()
	if l.watch {
		return l.watches(ctx, conn)
	}
	if err := reached(ctx, conn, l.c, l.timeout); err != nil {
		return err
	}
	first, err := service.Ask(ctx, conn, l.timeout/2, nil)
	second := first
	if err == nil && len(first) > 0 {
		l.report(first)
		var known []string
		for _, f := range first {
			known = append(known, f.Instance)
		}
		second, err = service.Ask(ctx, conn, l.timeout/2, known)
		for _, f := range first { // one that did not answer twice has answered
			if !slices.ContainsFunc(second, func(other service.Found) bool { return other.Instance == f.Instance }) {
				second = append(second, f)
			}
		}
	}
	switch {
	case ctx.Err() != nil:
		return errors.New("status: it was stopped before the end")
	case err != nil:
		return fmt.Errorf("status: %w", err)
	}
	r := l.report(second)
	if err := l.print(&r); err != nil {
		return err
	}
	return l.judge(&r)
}

// watches looks again and again, through outages of NATS too, until it is told to stop.
func (l *looker) watches(ctx context.Context, conn *stream.Conn) error {
	for {
		next := time.After(watchEvery)
		err := reached(ctx, conn, l.c, l.timeout)
		var found []service.Found
		if err == nil {
			found, err = service.Ask(ctx, conn, min(l.timeout/2, watchEvery), nil)
		}
		if ctx.Err() != nil {
			return nil
		}
		r := l.report(found)
		if err == nil {
			err = l.judge(&r)
		}
		if l.terminal {
			if _, err := io.WriteString(l.stdout, "\x1b[H\x1b[2J"); err != nil { // from the top of an empty screen
				return err
			}
		}
		if lost := l.print(&r); lost != nil {
			return lost
		}
		if err != nil {
			to := l.stdout
			if l.json {
				to = l.stderr // which is no document
			}
			if _, err := fmt.Fprintf(to, "zulip-nats: %s\n", tail.Clean(err.Error(), mostLine)); err != nil {
				return err
			}
		}
		select {
		case <-next:
		case <-ctx.Done():
			return nil
		}
	}
}

// report sorts what was found by realms, and takes the rates from the look before.
func (l *looker) report(found []service.Found) statusReport {
	r := statusReport{Time: time.Now().UTC(), Realms: []statusRealm{}}
	realms := map[string][]statusInstance{}
	for _, name := range l.realms {
		realms[name] = []statusInstance{}
	}
	before := l.before
	l.before = map[string]amount{}
	for _, f := range found {
		if f.Trouble != "" {
			r.Silent = append(r.Silent, statusSilent{f.Instance, f.Trouble})
		}
		for _, one := range f.Realms {
			if _, asked := realms[one.Realm]; len(l.realms) > 0 && !asked {
				continue
			}
			if _, err := subjects.ParseRealm(one.Realm); err != nil {
				continue // anybody may answer
			}
			i := statusInstance{Instance: f.Instance, Version: f.Version, RealmReport: one}
			now := amount{f.Time, one.Counters.Refilled}
			for _, n := range one.Counters.Events {
				now.stored += n
			}
			key := f.Instance + " " + one.Realm
			l.before[key] = now
			if was, known := before[key]; known && one.Leads && now.at.After(was.at) && now.stored >= was.stored {
				rate := float64(now.stored-was.stored) / now.at.Sub(was.at).Seconds()
				i.PerSecond = &rate
			}
			realms[one.Realm] = append(realms[one.Realm], i)
		}
	}
	r.OK = len(realms) > 0
	for _, name := range slices.Sorted(maps.Keys(realms)) {
		one := statusRealm{Realm: name, Instances: realms[name]}
		slices.SortFunc(one.Instances, func(a, b statusInstance) int {
			if a.Leads != b.Leads { // who leads stands first
				if a.Leads {
					return -1
				}
				return 1
			}
			return strings.Compare(a.Instance, b.Instance)
		})
		one.Served = slices.ContainsFunc(one.Instances, func(i statusInstance) bool { return i.Leads && i.OK })
		r.OK = r.OK && one.Served
		r.Realms = append(r.Realms, one)
	}
	return r
}

// judge says as an error what is not as it should be.
func (l *looker) judge(r *statusReport) error {
	var not []string
	for _, realm := range r.Realms {
		if !realm.Served {
			not = append(not, realm.Realm)
		}
	}
	switch {
	case len(r.Realms) == 0 && len(r.Silent) == 0:
		return fmt.Errorf("status: nobody answers on %s at %s: look whether `zulip-nats run` runs with this NATS and in "+
			"this account, and whether its log has status_unseen", service.Subject, redact.URLs(l.c.NATS.URL))
	case len(not) > 0:
		return fmt.Errorf("status: not served: %s; no instance that answers leads there and does its job: see what it "+
			"says above, and its log", strings.Join(not, ", "))
	case !r.OK:
		return errors.New("status: no instance can say how it is")
	}
	return nil
}

func (l *looker) print(r *statusReport) error {
	var out bytes.Buffer
	if l.json {
		e := json.NewEncoder(&out)
		e.SetEscapeHTML(false)
		if !l.watch { // else a line is a document
			e.SetIndent("", "  ")
		}
		if err := e.Encode(r); err != nil {
			return err
		}
	} else {
		r.table(&out)
	}
	_, err := l.stdout.Write(out.Bytes())
	return err
}

// table writes the report for people. All of it comes from other processes, so nothing of
// it may draw on the terminal.
func (r *statusReport) table(to io.Writer) {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	var notes []string
	note := func(who, says string) { notes = append(notes, tail.Clean(who, 200)+": "+tail.Clean(says, 1000)) }
	if len(r.Realms) > 0 {
		fmt.Fprintln(w, "REALM\tINSTANCE\tROLE\tSTATE\tRATE\tLAST EVENT\tQUEUE ENDS")
	}
	for _, realm := range r.Realms {
		if len(realm.Instances) == 0 {
			fmt.Fprintf(w, "%s\t-\t-\tnot seen\t-\t-\t-\n", tail.Clean(realm.Realm, 100))
		}
		for _, i := range realm.Instances {
			role, rate, last, ends := "-", "-", "-", "-"
			switch {
			case i.Leads:
				role = "leads"
			case i.State == "standby":
				role = "stands by"
			}
			if i.PerSecond != nil {
				rate = fmt.Sprintf("%.1f/s", *i.PerSecond)
			}
			if i.LastStored != nil && i.Leads {
				last = about(r.Time.Sub(*i.LastStored)) + " ago"
			}
			if i.QueueExpires != nil {
				if ends = "in " + about(i.QueueExpires.Sub(r.Time)); !i.QueueExpires.After(r.Time) {
					ends = "overdue"
				}
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", tail.Clean(realm.Realm, 100), tail.Clean(i.Instance, 100), role,
				tail.Clean(i.State, 40), rate, last, ends)
			if !i.OK {
				note(realm.Realm+" "+i.Instance, i.Says)
			}
			for _, reason := range i.Reasons {
				note(realm.Realm+" "+i.Instance, reason.Side+": "+reason.Says)
			}
		}
	}
	for _, s := range r.Silent {
		note(s.Instance, s.Why)
	}
	_ = w.Flush() // into memory
	for _, n := range notes {
		fmt.Fprintln(to, n)
	}
}

// about is a time to the two largest units, for people; clocks that differ make none
// negative.
func about(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%d d %d h", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

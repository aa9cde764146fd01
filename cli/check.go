package cli

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	urfave "github.com/urfave/cli/v2"

	"zulip-nats/bridge"
	"zulip-nats/fleet"
	"zulip-nats/poller"
	"zulip-nats/redact"
	"zulip-nats/stream"
	"zulip-nats/subjects"
	"zulip-nats/tail"
)

const (
	// checkTry is how long one try to reach NATS, or to get a queue, may take.
	checkTry = 10 * time.Second
	// checkPause lies between two tries.
	checkPause = 250 * time.Millisecond
	// recordRoom is what a message must have room for, in bytes: the record of a queue,
	// unless its narrow is very long.
	recordRoom = 8 << 10
	// clockApart is how far two clocks may be apart without a warning.
	clockApart = 30 * time.Second
	// tightLimit is the fewest requests that a rule of Zulip's leaves without a warning.
	tightLimit = 20
)

func (a *app) check() *urfave.Command {
	c := defaults()
	s := newSettings(c.settings())
	k := checker{app: a}
	const category = "Check"
	level, format := zerolog.Disabled, LogAuto
	own := append([]*option{
		opt(category, "json", "a JSON object in each line instead of words", "", truth(&k.json), yes),
		opt(category, "wait", "`TIME` to wait for Zulip, and then for NATS, to be there", "one try each",
			duration(&k.wait, 0, time.Hour)),
		opt(category, "offline", "look at settings and files only, and connect to nothing", "", truth(&k.offline), yes),
	}, logOptions(&level, &format, "none")...)
	return &urfave.Command{
		Name:  "check",
		Usage: "look at all that run needs, and leave nothing behind",
		UsageText: "zulip-nats check --zuliprc FILE [--nats-url URL] [--json] [--wait TIME] [--offline] [options of run]\n" +
			"zulip-nats check --config FILE [--json] [--wait TIME] [--offline] [options of run]",
		Description: "Takes the options of run about Zulip, NATS and the stream, and prints a line for each thing that " +
			"was looked at: ok, note (to know), warn (run works, and not all of it), or FAIL with what to do.\nWith --json each line is an object with " +
			"result (ok, note, warn, fail), what, seen, and for warn and fail remedy; with several " +
			"organizations realm, too, which is in front of the words otherwise.\nIt is for people. Do not put it " +
			"before a start: run waits for what is away.\nExit codes: 0 no FAIL, 1 there is one, 2 usage.",
		Flags: flags(append(s.options, own...)),
		Action: func(u *urfave.Context) error {
			c, err := s.read()
			err = errors.Join(err, parse(own))
			if is[usageError](err) {
				return err
			}
			_, terminal := terminalOf(a.stdout)
			k.signs = terminal && !k.json && os.Getenv("NO_COLOR") == ""
			if err != nil {
				for text := range strings.SplitSeq(err.Error(), "\n") {
					k.fail("settings", "they cannot be used", text)
				}
			} else {
				k.c, k.log = c, newLog(a.stderr, format, level)
				if unknown := unknownVariables(u.App.Commands); len(unknown) > 0 {
					k.warn("variables", strings.Join(unknown, ", "), "no option has these variables: correct or unset them")
				}
				if unused := s.unusedVariables(); len(unused) > 0 {
					k.warn("variables", strings.Join(unused, ", "), "--config or several --zuliprc say which accounts "+
						"there are, and these can stand for none of them: unset them")
				}
				k.all(u.Context)
			}
			switch {
			case u.Context.Err() != nil:
				return errors.New("check: it was stopped before the end")
			case k.wrong > 0:
				return fmt.Errorf("check: %d of %d things are not as they must be", k.wrong, k.looked)
			}
			return k.lost
		},
	}
}

// finding is what came of looking at one thing. It is a line of the output, and with
// --json its object, which scripts rely on.
type finding struct {
	Realm  string `json:"realm,omitempty"` // where there are several, and it is about one of them
	Result string `json:"result"`          // ok, note, warn, fail
	What   string `json:"what"`            // which thing: zuliprc, stream, ...
	Seen   string `json:"seen"`
	Remedy string `json:"remedy,omitempty"` // why it is wrong and what to do; of warn and fail
}

// checker is one run of `check`. It asks and reads as `run` does, and makes nothing that
// lasts: the queue that Zulip makes for it is deleted at once, and what writes need is
// tried by requests that are refused, see [stream.Conn.Probe].
type checker struct {
	*app
	c   *Config
	r   *RealmConfig // the one that is looked at
	log zerolog.Logger

	realm string // its name, where there are several
	width int    // of the longest such name, and the blanks behind it

	json, offline, signs bool
	wait                 time.Duration

	looked, wrong int
	lost          error // the output, or a part of it, could not be written
}

func (k *checker) ok(what, seen string)   { k.print(finding{Result: "ok", What: what, Seen: seen}) }
func (k *checker) note(what, seen string) { k.print(finding{Result: "note", What: what, Seen: seen}) }
func (k *checker) warn(what, seen, remedy string) {
	k.print(finding{Result: "warn", What: what, Seen: seen, Remedy: remedy})
}

// fail is a cross. Errors are sentences that say what to do already, so they are the
// remedy.
func (k *checker) fail(what, seen, remedy string) {
	k.wrong++
	k.print(finding{Result: "fail", What: what, Seen: seen, Remedy: remedy})
}

func (k *checker) print(f finding) {
	k.looked++
	f.Realm = k.realm
	if k.json {
		e := json.NewEncoder(k.stdout) // which ends each with a line break
		e.SetEscapeHTML(false)
		k.lost = cmp.Or(k.lost, e.Encode(f))
		return
	}
	// A value may come from a server: it must not draw on the terminal.
	clean := func(s string) string { return tail.Clean(s, 2000) }
	sign := f.Result
	switch {
	case k.signs:
		sign = map[string]string{"ok": "✓", "note": " ", "warn": "!", "fail": "✗"}[f.Result]
	case sign == "fail":
		sign = "FAIL"
	}
	text := fmt.Sprintf("%-4s  %-*s%-16s  %s\n", sign, k.width, f.Realm, f.What, clean(f.Seen))
	if f.Remedy != "" {
		text += fmt.Sprintf("%-4s  %-*s%-16s  -> %s\n", "", k.width, "", "", clean(f.Remedy))
	}
	_, err := io.WriteString(k.stdout, text)
	k.lost = cmp.Or(k.lost, err)
}

// all looks at everything, as far as one thing does not rest on another that is wrong: at
// each realm's account, and then at NATS, where there is one connection for all.
func (k *checker) all(ctx context.Context) {
	realms := make([]subjects.Realm, len(k.c.Realms))
	if len(realms) > 1 {
		for _, r := range k.c.Realms {
			k.width = max(k.width, len(r.Name)+2)
		}
	}
	for i := range realms {
		if ctx.Err() == nil {
			k.turnTo(i)
			realms[i] = k.account(ctx)
		}
	}
	k.realm = ""
	if ctx.Err() == nil {
		k.nats(ctx, realms)
	}
}

// turnTo makes a realm the one that is looked at.
func (k *checker) turnTo(i int) {
	if k.r = &k.c.Realms[i]; len(k.c.Realms) > 1 {
		k.realm = k.r.Name
	}
}

// account looks at the Zulip side of the realm. The zero realm is one whose name is not
// known.
func (k *checker) account(ctx context.Context) subjects.Realm {
	load := func() (poller.Account, error) { return poller.LoadAccount(k.r.Account) }
	account, err := load()
	if err != nil {
		k.fail("zuliprc", "no account can be read", err.Error())
	} else {
		k.zuliprc()
	}
	var realm subjects.Realm
	var g *greeting
	if err == nil {
		if g, err = newGreeting(k.r, load, k.log); err != nil {
			k.fail("settings", "they do not go together", err.Error())
		} else {
			realm = g.realm
			k.ok("realm", fmt.Sprintf("%s: subjects %s, %s", realm, realm.All(), realm.Layout()))
		}
	} else if k.r.Name != "" {
		realm, _ = k.r.realm("") // the option was looked at when it was read
	}
	for _, n := range unknownTypes(k.r.Queue) {
		k.warn("event types", n.which, n.text)
	}
	if g != nil && !k.offline {
		k.zulip(ctx, g, account)
	}
	return realm
}

// zuliprc looks at the file of the account, which was read.
func (k *checker) zuliprc() {
	path := k.r.Account.Path()
	if path == "" {
		k.ok("zuliprc", "none; the account is in "+k.r.Where)
		return
	}
	shown := redact.Path(path)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		k.ok("zuliprc", "none; the account is in variables")
	case err != nil:
		k.note("zuliprc", shown+", read; its mode cannot be seen")
	case runtime.GOOS != "windows" && info.Mode().Perm()&0o007 != 0:
		k.warn("zuliprc", fmt.Sprintf("%s, mode %04o", shown, info.Mode().Perm()),
			"everybody on this machine may read the key, or change the file: chmod 600 "+shown)
	default:
		k.ok("zuliprc", fmt.Sprintf("%s, mode %04o", shown, info.Mode().Perm()))
	}
}

// heads keeps what the heads of Zulip's answers say.
type heads struct {
	tls    *tls.ConnectionState
	ahead  time.Duration // Zulip's clock before ours, as of the last Date
	dated  bool
	limits string // of the last answer with one
	least  int
}

func (h *heads) see(resp *http.Response) {
	h.tls = resp.TLS
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		// The header is cut to whole seconds.
		h.ahead, h.dated = time.Until(date.Add(500*time.Millisecond)), true
	}
	limit, err1 := strconv.Atoi(resp.Header.Get("X-RateLimit-Limit"))
	left, err2 := strconv.Atoi(resp.Header.Get("X-RateLimit-Remaining"))
	if err1 == nil && err2 == nil {
		h.limits, h.least = fmt.Sprintf("%d requests in its window, %d left", limit, left), limit
	}
}

// zulip looks at the Zulip side.
func (k *checker) zulip(ctx context.Context, g *greeting, account poller.Account) {
	site := redact.URL(account.Site)
	var seen heads
	g.poller.Client.Seen = seen.see
	defer g.poller.Close()

	var me *poller.Me
	var err error
	var config *poller.ConfigError
	var refused *poller.AuthError
	var odd *poller.RefusedError // the account was looked at before
	for end := time.Now().Add(k.wait); ; {
		me, err = g.poller.Me(ctx)
		if err == nil || errors.As(err, &config) || errors.As(err, &refused) || errors.As(err, &odd) ||
			!k.again(ctx, end) {
			break
		}
	}
	switch {
	case ctx.Err() != nil:
		return
	case config != nil:
		k.fail("Zulip", site+" cannot be asked", err.Error())
		return
	case refused != nil:
		k.ok("Zulip", site+" answers")
		k.fail("account", account.Email+" is not let in", err.Error())
		return
	case err != nil && odd == nil:
		k.fail("Zulip", site+" gives no answer that could be used", err.Error())
		return
	}
	k.ok("Zulip", site+" answers, and is where the API is (no redirect)")
	k.tls(account, seen.tls)
	if me == nil {
		k.warn("account", account.Email+" is let in", "Zulip does not say who we are: "+err.Error())
	} else {
		g.me = me
		who := fmt.Sprintf("%s, a %s, role %s", account.Email, kindOf(me), me.Role)
		if text := g.personal(); text != "" {
			k.warn("account", who, text)
		} else {
			k.ok("account", who)
		}
	}
	k.queue(ctx, g)
	if seen.limits == "" {
		k.note("limits", "Zulip tells none")
	} else if seen.least < tightLimit {
		k.warn("limits", seen.limits, "so few make a slow start after an outage: ask who runs the server to raise "+
			"RATE_LIMITING_RULES")
	} else {
		k.ok("limits", seen.limits)
	}
	if seen.dated {
		k.clock("Zulip's clock", seen.ahead)
	}
}

// again waits for the next try, if there is to be one before end.
func (k *checker) again(ctx context.Context, end time.Time) bool {
	if !time.Now().Before(end) {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(checkPause):
		return true
	}
}

// tls looks at how the site is known to be the right one.
func (k *checker) tls(account poller.Account, state *tls.ConnectionState) {
	host := ""
	if u, err := url.Parse(account.Site); err == nil {
		host = u.Hostname()
	}
	ip := net.ParseIP(host)
	switch {
	case state == nil && (host == "localhost" || ip != nil && ip.IsLoopback()):
		k.ok("TLS", "none, on this machine")
	case state == nil:
		k.warn("TLS", "none: the site is http", "the key and all events can be read on the way: use https")
	case account.Insecure:
		k.warn("TLS", tls.VersionName(state.Version)+", any certificate is believed", "who stands between can read the "+
			"key: leave --insecure out, and name the authority as cert_bundle in the zuliprc")
	default:
		seen := tls.VersionName(state.Version)
		if len(state.PeerCertificates) > 0 {
			seen += ", certificate until " + state.PeerCertificates[0].NotAfter.UTC().Format(time.DateOnly)
		}
		k.ok("TLS", seen)
	}
}

// queue lets Zulip make a queue, since only that shows what it grants, and deletes it.
func (k *checker) queue(ctx context.Context, g *greeting) {
	trying, cancel := context.WithTimeout(ctx, checkTry)
	defer cancel()
	var why atomic.Value // what keeps it from working, while it is tried
	why.Store("it does not answer")
	defer time.AfterFunc(checkTry/10*9, func() {
		if trouble, known := g.poller.Trouble(); known {
			why.Store(trouble.Text)
		}
	}).Stop()
	r, err := g.poller.Register(trying)
	if r != nil {
		// Also when we are stopped meanwhile.
		deleting, done := context.WithTimeout(context.WithoutCancel(ctx), checkTry)
		defer done()
		if err := g.poller.Delete(deleting, r.QueueID); err != nil {
			k.warn("queue", "one was made for this, and could not be deleted", fmt.Sprintf("it ends by itself in %s: %v",
				period(r.Life), err))
		}
	}
	var refused *poller.RefusedError
	switch {
	case ctx.Err() != nil:
		return
	case errors.As(err, &refused):
		k.fail("queue", "Zulip takes no such options", err.Error()+"; correct --event-types, --narrow or "+
			"--all-public-streams")
		return
	case err != nil && trying.Err() != nil:
		k.fail("queue", fmt.Sprintf("Zulip makes none in %s: %s", period(checkTry), why.Load()),
			"it lets us in, and POST /api/v1/register fails: look at Zulip's server, or try again later")
		return
	case err != nil:
		k.fail("queue", "Zulip makes none", err.Error())
		return
	}
	k.ok("Zulip server", fmt.Sprintf("version %s, feature level %d", r.Version, r.FeatureLevel))
	asked := cmp.Or(k.r.Queue.Life, poller.DefaultLife)
	granted := period(r.Life)
	if !r.LifeSaid {
		granted += " (as such a server is known to do; it does not say)"
	}
	if r.Life < asked {
		k.warn("queue's life", granted, fmt.Sprintf("%s were asked for: an outage that is longer than what is granted "+
			"loses events; ask who runs the server", period(asked)))
	} else {
		k.ok("queue's life", granted)
	}
	channels := "not known"
	if c := g.poller.Channels(); c != nil {
		channels = fmt.Sprintf("subscribed to %d", c.Subscribed)
	}
	never := g.never()
	for _, n := range never {
		seen := channels
		if n.about == "channel" {
			seen = n.which
		}
		k.warn("channels", seen, n.text)
	}
	if len(never) == 0 {
		k.ok("channels", channels)
	}
}

// clock tells how far a clock is before ours; less than a second is as good as none, since
// that is what the ways to know it are worth.
func (k *checker) clock(what string, ahead time.Duration) {
	seen := "as ours"
	switch {
	case ahead >= time.Second:
		seen = ahead.Round(time.Second).String() + " before ours"
	case ahead <= -time.Second:
		seen = (-ahead).Round(time.Second).String() + " behind ours"
	}
	if ahead.Abs() > clockApart {
		k.warn(what, seen, "times in records and ages will be wrong: let all machines follow a time server (NTP)")
		return
	}
	k.ok(what, seen)
}

// nats looks at the NATS side, for each realm in turn.
func (k *checker) nats(ctx context.Context, realms []subjects.Realm) {
	c := k.c
	if c.NATS.URL == "" {
		k.embedded()
		return
	}
	shown := redact.URLs(c.NATS.URL)
	api, err := stream.API(c.JSDomain, c.JSAPIPrefix)
	if err = cmp.Or(c.NATS.Check(), err); err != nil {
		k.fail("NATS settings", "they cannot be used", err.Error())
		return
	}
	if k.offline {
		k.ok("NATS settings", shown)
		return
	}
	conn, err := connect(ctx, c, k.log)
	if err != nil {
		if ctx.Err() == nil {
			k.fail("NATS", shown, err.Error())
		}
		return
	}
	defer conn.Close()
	if !k.connected(ctx, conn, shown) {
		return
	}
	for i, realm := range realms {
		if ctx.Err() == nil {
			k.turnTo(i)
			k.store(ctx, conn, api, realm)
		}
	}
}

// store looks at what the realm needs in NATS. The zero realm is one that is not known.
func (k *checker) store(ctx context.Context, conn *stream.Conn, api string, realm subjects.Realm) {
	if realm == (subjects.Realm{}) {
		k.note("stream", "not looked at: its name comes from the site of the zuliprc, or from --realm")
		return
	}
	s, there := k.stream(ctx, conn, api, realm)
	if !there || ctx.Err() != nil {
		return
	}
	name := cmp.Or(k.r.Stream, stream.DefaultName(realm.String()))
	var about *jetstream.StreamInfo
	if s != nil {
		defer s.Close()
		name = s.Name()
		about = k.settings(ctx, conn, api, s)
	}
	k.room(conn, about)
	k.rights(ctx, conn, api, name, realm, s)
	k.erasing(ctx, conn, api, name, s)
	k.objects(ctx, conn, api, realm)
	k.lease(ctx, conn, realm)
	if about != nil && !about.TimeStamp.IsZero() {
		k.clock("NATS' clock", time.Until(about.TimeStamp))
	} else {
		k.note("NATS' clock", "not known: NATS tells its time with a stream only, from 2.10 on")
	}
}

// embedded says what `run` would start. The server is not started: it would leave files.
func (k *checker) embedded() {
	dir, err := k.c.natsDir()
	if err != nil {
		k.fail("NATS", "an embedded server, without a folder", err.Error())
		return
	}
	seen := "none is named: run starts an embedded server, which keeps the stream in " + dir
	if !k.offline {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(k.c.NATSPort)))
		if err != nil {
			k.warn("NATS", seen, fmt.Sprintf("port %d cannot be had: if a bridge runs already, look at its server with "+
				"--nats-url nats://127.0.0.1:%d, else choose another port with --nats-port", k.c.NATSPort, k.c.NATSPort))
			return
		}
		l.Close()
	}
	k.ok("NATS", seen)
}

// connected waits for the connection, and says what is at its other end.
func (k *checker) connected(ctx context.Context, conn *stream.Conn, shown string) bool {
	down, up := awaits(ctx, conn, k.wait, k.wait+checkTry)
	switch {
	case ctx.Err() != nil:
		return false
	case !up:
		seen := shown + " cannot be reached"
		if down.Reason == "refused" {
			seen = shown + " refuses what we sign in with"
		}
		if down.Text != "" {
			seen += " (" + down.Text + ")"
		}
		k.fail("NATS", seen, natsRemedy(down.Reason))
		return false
	}
	version := conn.ConnectedServerVersion()
	seen := fmt.Sprintf("%s, signed in, nats-server %s", redact.URL(conn.ConnectedUrl()), version)
	if !stream.Supported(version) {
		k.warn("NATS", seen, "the oldest that is supported is "+stream.Oldest+": update the server")
	} else {
		k.ok("NATS", seen)
	}
	return true
}

// errLooking keeps stream.Open from making a stream.
var errLooking = errors.New("nothing is made by a look")

// stream finds the stream and verifies it as `run` does. It returns nil and true if there
// is none and one can be made, as far as that can be known.
func (k *checker) stream(ctx context.Context, conn *stream.Conn, api string, realm subjects.Realm) (*stream.Stream,
	bool) {
	var s *stream.Stream
	var err error
	for end := time.Now().Add(k.wait); ; {
		cfg := streamConfig(k.c, k.r, realm)
		cfg.BeforeCreate = func(context.Context) error { return errLooking }
		s, err = stream.Open(ctx, conn, cfg)
		if e, ok := errors.AsType[*stream.Error](err); !ok || e.Kind != stream.Unavailable || !k.again(ctx, end) {
			break
		}
	}
	var bad *stream.ConfigError
	var trouble *stream.Error
	switch {
	case ctx.Err() != nil:
		return s, false
	case errors.Is(err, stream.ErrNotMade):
		k.ok("JetStream", "answers")
		return nil, k.creatable(ctx, conn, api, realm)
	case errors.As(err, &bad) && bad.Setting == "JetStream", errors.Is(err, nats.ErrNoResponders):
		k.fail("JetStream", "it is not there for us", err.Error())
	case bad != nil && bad.Stream == "":
		k.fail("stream", bad.Setting+" cannot be used", err.Error())
	case bad != nil:
		k.ok("JetStream", "answers")
		k.fail("stream", fmt.Sprintf("%s is there, and its %s would break the promise", bad.Stream, bad.Setting),
			err.Error())
	case errors.As(err, &trouble) && trouble.Kind == stream.Forbidden:
		k.fail("rights", "this user may not look at the stream", err.Error())
	case err != nil:
		k.fail("stream", "it cannot be looked at now", err.Error())
	default:
		k.ok("JetStream", "answers")
	}
	return s, err == nil
}

// creatable says whether the stream, which is not there, could be made.
func (k *checker) creatable(ctx context.Context, conn *stream.Conn, api string, realm subjects.Realm) bool {
	name := cmp.Or(k.r.Stream, stream.DefaultName(realm.String()))
	if err := conn.Probe(ctx, "stream "+name+": creating it", api+"STREAM.CREATE."+name); err != nil {
		k.fail("stream", name+" is not there, and cannot be made", err.Error()+"; or make it yourself: nats stream add "+
			name+" --subjects '"+realm.All()+"'")
		return false
	}
	if n := k.r.New.Replicas; n > 1 && k.c.JSDomain+k.c.JSAPIPrefix == "" && conn.ConnectedClusterName() == "" {
		k.fail("replicas", fmt.Sprintf("%d, and the server is alone", n), "lower --replicas to 1, or use a cluster")
		return false
	}
	seen := name + " is not there; run makes it"
	answer, err := conn.Ask(ctx, "the account's limits", &nats.Msg{Subject: api + "INFO"}, checkTry)
	var account jetstream.AccountInfo
	if err != nil || json.Unmarshal(answer.Data, &account) != nil {
		k.ok("stream", seen+" (we have the right; the account's limits we may not see)")
		return true
	}
	if most := account.Limits.MaxStreams; most > 0 && account.Streams >= most {
		k.fail("stream", fmt.Sprintf("%s is not there, and the account has %d of at most %d streams", name,
			account.Streams, most), "raise the account's limit of streams, or delete one")
		return false
	}
	if account.Limits.MaxBytesRequired && k.r.New.MaxBytes <= 0 {
		k.fail("stream", name+" is not there, and the account wants each to have a limit of size", "give one with "+
			"--max-bytes 10G, or make the stream yourself")
		return false
	}
	k.ok("stream", seen)
	return true
}

// settings tells of a stream that is there and carries the promise.
func (k *checker) settings(ctx context.Context, conn *stream.Conn, api string, s *stream.Stream) *jetstream.StreamInfo {
	what := "stream " + s.Name() + ": reading its settings"
	answer, err := conn.Ask(ctx, what, &nats.Msg{Subject: api + "STREAM.INFO." + s.Name()}, checkTry)
	about := new(jetstream.StreamInfo)
	if err == nil {
		err = json.Unmarshal(answer.Data, about)
	}
	if err != nil {
		k.fail("stream", s.Name()+" cannot be looked at now", err.Error())
		return nil
	}
	c := about.Config
	k.ok("stream", fmt.Sprintf("%s is there, with %d messages; subjects %s; retention %s, discard %s", s.Name(),
		about.State.Msgs, strings.Join(c.Subjects, ", "), strings.ToLower(c.Retention.String()),
		strings.ToLower(strings.TrimPrefix(c.Discard.String(), "Discard"))))
	life := cmp.Or(k.r.Queue.Life, poller.DefaultLife)
	short := s.AgeWarning(c.MaxAge)
	if short != "" {
		k.fail("max_age", age(c.MaxAge), short+"; raise it: nats stream edit "+s.Name()+" --max-age="+
			max(7*24*time.Hour, life).String())
	} else {
		k.ok("max_age", fmt.Sprintf("%s; the queue lives %s", age(c.MaxAge), period(life)))
	}
	k.ok("replicas", strconv.Itoa(c.Replicas))
	for _, text := range s.Warnings() {
		if text != short {
			k.warn("stream", "it is risky", text)
		}
	}
	for _, text := range s.Usual() {
		k.note("stream", text)
	}
	for _, u := range s.Unlike() {
		k.warn("stream", fmt.Sprintf("its %s is %s, not %s", u.Setting, u.Has, u.Asked),
			"it stays as it is: change it yourself with: nats stream edit "+s.Name())
	}
	return about
}

// room looks whether our records fit into a message.
func (k *checker) room(conn *stream.Conn, about *jetstream.StreamInfo) {
	size, which := conn.MaxPayload(), "max_payload of the server"
	if about != nil && about.Config.MaxMsgSize > 0 && int64(about.Config.MaxMsgSize) < size {
		size, which = int64(about.Config.MaxMsgSize), "max_msg_size of the stream"
	}
	seen := fmt.Sprintf("%d bytes (%s)", size, which)
	if size < recordRoom {
		k.fail("largest message", seen, fmt.Sprintf("the bridge's own records may need %d: raise %s", recordRoom, which))
		return
	}
	k.ok("largest message", seen)
}

// rights tries what the bridge does with the stream; s is nil where there is none yet.
func (k *checker) rights(ctx context.Context, conn *stream.Conn, api, name string, realm subjects.Realm,
	s *stream.Stream) {
	subject := strings.TrimSuffix(realm.All(), ">") + "bridge.check"
	k.right("right to write", realm.All(), conn.Probe(ctx, "writing to "+name, subject))
	var err error
	if s != nil {
		_, _, err = s.Last(ctx)
	} else {
		err = conn.Probe(ctx, "reading "+name, api+"STREAM.MSG.GET."+name)
	}
	k.right("right to read", name, err)
	if s != nil && err == nil {
		k.layout(ctx, name, realm, s)
	}
	for _, verb := range []string{"CREATE", "MSG.NEXT", "DELETE"} {
		subject := api + "CONSUMER." + verb + "." + name + ".zulip-nats-check"
		if err := conn.Probe(ctx, "reading "+name+" by a consumer", subject); err != nil {
			k.warn("consumers", name, "after a lost queue the stream is read message by message, which is slow: "+
				err.Error())
			return
		}
	}
	k.ok("consumers", "we may make them on "+name)
}

// layout looks whether the stream has the layout of subjects that is asked for.
func (k *checker) layout(ctx context.Context, name string, realm subjects.Realm, s *stream.Stream) {
	var bad *bridge.ConfigError
	switch err := bridge.FitsLayout(ctx, s, realm); {
	case errors.As(err, &bad):
		k.fail("subjects", fmt.Sprintf("%s cannot take them %s", name, realm.Layout()), bad.Error())
	case err != nil:
		k.fail("subjects", "it cannot be looked at now which layout "+name+" has", err.Error())
	}
}

// erasing looks whether messages could be erased, where that is asked for; s is nil where
// there is no stream yet.
func (k *checker) erasing(ctx context.Context, conn *stream.Conn, api, name string, s *stream.Stream) {
	if !k.r.EraseDeleted {
		return
	}
	var err error
	if s != nil {
		err = s.CheckErase(ctx)
	} else {
		err = conn.Probe(ctx, "stream "+name+": erasing messages", api+"STREAM.MSG.DELETE."+name)
	}
	var bad *stream.ConfigError
	if errors.As(err, &bad) && bad.Setting == "deny_delete" {
		k.fail("right to erase", bad.Stream+" allows nobody to", bad.Error())
		return
	}
	if bad != nil {
		err = &stream.Error{Kind: stream.Forbidden, Err: bad}
	}
	k.right("right to erase", name, err)
}

// right tells of a right that was tried: there, missing, or not known.
func (k *checker) right(what, where string, err error) {
	e, ok := errors.AsType[*stream.Error](err)
	switch {
	case err == nil:
		k.ok(what, where)
	case ok && e.Kind == stream.Forbidden:
		k.fail(what, where+": we have none", err.Error())
	default:
		k.fail(what, where+": it could not be tried", err.Error())
	}
}

// objects looks at the store for events that are larger than a message may be.
func (k *checker) objects(ctx context.Context, conn *stream.Conn, api string, realm subjects.Realm) {
	bucket := "zulip_" + realm.String()
	what, name := "object store "+bucket, "OBJ_zulip_"+realm.String()
	seen := bucket + " is there"
	_, err := conn.Ask(ctx, what+": reading its settings", &nats.Msg{Subject: api + "STREAM.INFO." + name}, checkTry)
	if e, ok := errors.AsType[*stream.Error](err); ok && e.Kind == stream.Gone {
		seen = bucket + " is not there; run makes it"
		err = conn.Probe(ctx, what+": creating it", api+"STREAM.CREATE."+name)
	}
	if err == nil {
		err = conn.Probe(ctx, what+": writing to it", "$O."+bucket+".M.check")
	}
	if err != nil {
		k.warn("object store", bucket+" cannot be used", "an event that is too large for a message will wait for "+
			"--oversize-wait, and is rejected then: "+err.Error())
		return
	}
	k.ok("object store", seen)
}

// lease looks whether several instances could agree on one.
func (k *checker) lease(ctx context.Context, conn *stream.Conn, realm subjects.Realm) {
	if k.c.NoLease {
		k.note("lease", "not wanted (--no-lease)")
		return
	}
	there, err := fleet.Look(ctx, fleet.Config{Conn: conn, TTL: k.c.LeaseTTL, Domain: k.c.JSDomain,
		APIPrefix: k.c.JSAPIPrefix}, realm.String())
	switch {
	case err != nil:
		k.warn("lease", "none can be had", "one instance works without, and two would end each other's polls: "+
			err.Error())
	case there:
		k.ok("lease", "bucket "+fleet.DefaultBucket+" is there")
	default:
		k.ok("lease", "bucket "+fleet.DefaultBucket+" is not there; run makes it")
	}
}

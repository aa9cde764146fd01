package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/poller"
	"zulip-nats/redact"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// Config is what `run` was told. The zero value of a field is its default unless the
// field says otherwise; [defaults] gives the rest.
type Config struct {
	// Realms are the organizations to follow, each with one account: one, unless --config
	// or several --zuliprc say otherwise. See [settings].
	Realms []RealmConfig

	// NATS says how to reach the server. Without a URL there, an embedded server is
	// started.
	NATS stream.ConnectConfig

	// Context is a context of the nats command, by its name or as the path of its file.
	// It says what NATS, JSDomain and JSAPIPrefix do not.
	Context string

	// JSDomain is the JetStream domain, for a connection by way of a leaf node;
	// JSAPIPrefix begins the subjects of JetStream's API where the account imports it
	// from another one. At most one of the two; empty is what the connection itself has.
	JSDomain, JSAPIPrefix string

	// embedded is true once the URL is that of our own server.
	embedded bool

	// NATSPort is where the embedded server listens, on 127.0.0.1. Default 4222.
	NATSPort int

	// StateDir holds what the embedded server stores, in its subfolder nats. Empty:
	// $XDG_STATE_HOME/zulip-nats, or ~/.local/state/zulip-nats. With a NATS URL nothing
	// is kept on this machine.
	StateDir string

	// NoLease runs without asking NATS who of several instances works. Two instances
	// still do not damage the stream, but they are in each other's way at Zulip.
	NoLease bool

	// LeaseTTL is how long a dead instance keeps the lease: the time that a standby needs
	// to take over. Whole seconds. Default 4 s.
	LeaseTTL time.Duration

	// HTTP is where the page, health, status and metrics are served, host:port. Empty:
	// nowhere. See package monitor.
	HTTP string

	// Pprof serves the profiles of the Go runtime at HTTP too, below /debug/pprof/.
	Pprof bool
	// Show prints what is stored on stdout, as `tail` does.
	Show bool

	// LogLevel and LogFormat: what is logged on stderr, and how. Default info, and auto.
	LogLevel  zerolog.Level
	LogFormat LogFormat
}

// RealmConfig is one organization: the account, what its queue holds, and where it is
// stored.
type RealmConfig struct {
	// Account says where the site, the e-mail and the key are read from, at the start and
	// again whenever Zulip refuses the key. The zero value: $ZULIP_CONFIG or ~/.zuliprc,
	// and the ZULIP_* variables before what stands there.
	Account poller.Source

	// Name is the realm's name in subjects. Empty: by the site, see
	// [subjects.RealmFromSite].
	Name string

	// Layout says on which subjects events go, from the stream's beginning on.
	Layout subjects.Layout

	// Queue says what the queue holds and how long Zulip keeps it when nobody polls,
	// which is the outage that can be survived.
	Queue poller.Options

	// DeleteQueue gives the queue back to Zulip when the program is stopped, for good.
	// Otherwise it is left standing, since the next start resumes it.
	DeleteQueue bool

	// Stream is the stream's name. Empty: whichever stream collects the realm's subjects;
	// if none does, ZULIP_<realm> is created.
	Stream string

	// New says how the stream is made if there is none: by default with seven days, no
	// limit of size, one replica. An existing stream stays as it is.
	New stream.NewStream

	// Path says how events are published. Default auto: as the stream allows.
	Path stream.Path

	// BackfillMaxAge and BackfillMaxMessages bound what is read back from history after a
	// lost queue. Zero: no bound of that kind; -1 messages: nothing is read back.
	BackfillMaxAge      time.Duration
	BackfillMaxMessages int

	// State are the sections of the state of the organization that are stored.
	State []poller.Section

	// OversizeWait is how long an event that is too large for a message waits for the
	// object store.
	OversizeWait time.Duration

	// EraseDeleted: what NATS holds of a message is erased when it was deleted at Zulip.
	EraseDeleted bool

	// MovedFrom is the organization's address before, where the stream knows it by that
	// one.
	MovedFrom string

	// StartFrom is where the very first start begins. The zero value: now.
	StartFrom bridge.StartFrom

	// CloudEvents makes each message a CloudEvent too, by further headers.
	CloudEvents bool

	// Where is where the realm stands, for sentences: acme.ini:12, or --zuliprc FILE. Empty
	// where there is one realm, and no file. It says nothing about what is done.
	Where string

	// who is the e-mail address and the site, as they were when the settings were read.
	// Empty: there is one realm and no file, or they could not be read.
	who string
}

// without is the realm without where it stands and whose key it is, for comparison with
// another reading: neither decides how it is followed.
func (r RealmConfig) without() RealmConfig {
	r.Where, r.who = "", ""
	r.Account.Where = nil
	r.Account.Inline = maps.Clone(r.Account.Inline)
	delete(r.Account.Inline, "key")
	delete(r.Account.Inline, "key_file")
	return r
}

func defaults() Config {
	return Config{
		Realms:   []RealmConfig{{Queue: poller.DefaultOptions(), Path: stream.PathAuto}},
		NATSPort: 4222,
		LeaseTTL: 4 * time.Second,
		LogLevel: zerolog.InfoLevel, LogFormat: LogAuto,
	}
}

// Categories of options in help.
const (
	catFile  = "Configuration file"
	catZulip = "Zulip"
	catQueue = "What the queue holds (a change makes a new queue)"
	catNATS  = "NATS"
	catLease = "Several instances"
	catStore = "Storing"
	catLoss  = "After a lost queue"
	catWatch = "Watching"
	catLog   = "Log"
)

// options are the flags and variables of `run`; they fill c.
func (c *Config) options() []*option {
	watch := []*option{opt(catWatch, "http", "`ADDRESS` to serve a page for people at, /healthz, /readyz, "+
		"/status and /metrics, such as 127.0.0.1:8080; there is no password, so whoever can reach it can ask", "nowhere",
		httpAddress(&c.HTTP)),
		opt(catWatch, "pprof", "serve profiles of this process there too, below /debug/pprof/: to look for what is slow or "+
			"grows", "", truth(&c.Pprof), yes),
		opt(catWatch, "show", "print what is stored on stdout, as the command tail does", "", truth(&c.Show), yes)}
	return append(append(c.settings(), watch...), logOptions(&c.LogLevel, &c.LogFormat, "info")...)
}

// settings are those of them that say what is to be done.
func (c *Config) settings() []*option {
	r := &c.Realms[0]
	q := &r.Queue
	n := &c.NATS
	return []*option{
		opt(catZulip, "zuliprc",
			"`FILE` that Zulip serves for a bot (Settings > Bots); ZULIP_EMAIL, ZULIP_API_KEY, ZULIP_SITE and so on "+
				"come before it; run and check take several, each for an organization, without those",
			"$ZULIP_CONFIG, ~/.zuliprc", text(&r.Account.File)),
		opt(catZulip, "realm", "`NAME` of the organization in subjects", "first label of the site's host",
			realmName(&r.Name)),
		opt(catZulip, "insecure", "do not check the Zulip server's certificate", "", func(s string) error {
			r.Account.Insecure = new(bool)
			return truth(r.Account.Insecure)(s)
		}, yes),
		opt(catZulip, "delete-queue", "when stopped, delete the queue at Zulip for good; otherwise the next start "+
			"resumes it", "",
			truth(&r.DeleteQueue), yes),

		opt(catQueue, "event-types", "`TYPES` of events, with commas between or as a JSON list", "all",
			eventTypes(&q.EventTypes), many),
		opt(catQueue, "exclude-types", "`TYPES` of events that are not stored, with commas between or as a JSON list", "none",
			excludeTypes(&q.ExcludeTypes), many),
		opt(catQueue, "no-direct-messages", "store nothing of direct messages, nor what may be about them", "",
			truth(&q.NoDirectMessages), yes),
		opt(catQueue, "narrow", "`JSON` filter of message events: [[\"channel\", \"announce\"]]", "none",
			narrow(&q.Narrow)),
		opt(catQueue, "all-public-streams", "messages of all public channels, subscribed or not", "",
			truth(&q.AllPublicStreams), yes),
		opt(catQueue, "apply-markdown", "message content as HTML", "", truth(&q.ApplyMarkdown), yes),
		opt(catQueue, "client-gravatar", "avatar_url is null where clients can compute it; on unless =false", "",
			truth(&q.ClientGravatar), yes),
		opt(catQueue, "slim-presence", "presence events without e-mail addresses", "", truth(&q.SlimPresence), yes),
		opt(catQueue, "queue-life", "`TIME` that Zulip shall keep the queue while nobody polls", "24h",
			duration(&q.Life, time.Second, poller.MostLife)),

		opt(catNATS, "nats-url", "`URL` of a NATS server; more than one for a cluster",
			"an embedded server on 127.0.0.1",
			natsURLs(&n.URL), many, also("NATS_URL"), secret),
		opt(catNATS, "nats-context", "`NAME` of a context of the nats command (nats context ls); what other options "+
			"say comes before it", "",
			text(&c.Context), also("NATS_CONTEXT")),
		opt(catNATS, "nats-creds", "credentials `FILE`", "", text(&n.Creds), also("NATS_CREDS")),
		opt(catNATS, "nats-nkey", "`FILE` with an nkey seed", "", text(&n.NKey), also("NATS_NKEY")),
		opt(catNATS, "nats-jwt", "`JWT` of the user by itself; better in a variable", "", text(&n.JWT),
			also("NATS_JWT"), secret),
		opt(catNATS, "nats-seed", "`SEED` of the user by itself, for the JWT or as an nkey; better in a variable", "",
			text(&n.Seed),
			also("NATS_SEED"), secret),
		opt(catNATS, "nats-user", "`NAME` of the user; without a password it is a token", "", text(&n.User),
			also("NATS_USER"), secret),
		opt(catNATS, "nats-password", "`PASSWORD`; better in a variable, since others can see the command line", "",
			text(&n.Password), also("NATS_PASSWORD"), secret),
		opt(catNATS, "nats-token", "`TOKEN`; better in a variable", "", text(&n.Token), also("NATS_TOKEN"), secret),
		opt(catNATS, "nats-ca", "PEM `FILE` of the CA certificates to trust", "the system's", text(&n.CA),
			also("NATS_CA")),
		opt(catNATS, "nats-cert", "PEM `FILE` of our certificate", "", text(&n.Cert), also("NATS_CERT")),
		opt(catNATS, "nats-key", "PEM `FILE` of its key", "", text(&n.Key), also("NATS_KEY")),
		opt(catNATS, "nats-tls-first", "begin with TLS, for servers with handshake_first", "", truth(&n.TLSFirst), yes),
		opt(catNATS, "nats-inbox-prefix", "`PREFIX` of the subjects that answers come to", "_INBOX",
			name(&n.InboxPrefix)),
		opt(catNATS, "nats-js-domain", "JetStream `DOMAIN`, by way of a leaf node", "the server's", name(&c.JSDomain),
			also("NATS_JS_DOMAIN")),
		opt(catNATS, "nats-js-api-prefix", "`PREFIX` of JetStream's API, where the account imports it", "$JS.API",
			name(&c.JSAPIPrefix)),
		opt(catNATS, "nats-port", "`PORT` of the embedded server", "4222",
			unless(&n.URL, number(&c.NATSPort, 1, 65535))),
		opt(catNATS, "state-dir", "`FOLDER` for what the embedded server stores",
			"$XDG_STATE_HOME/zulip-nats, ~/.local/state/zulip-nats", text(&c.StateDir)),

		opt(catStore, "stream", "`NAME` of the stream",
			"the one that has the realm's subjects, else ZULIP_<realm> is created",
			streamName(&r.Stream)),
		opt(catStore, "subjects", "`LAYOUT` of subjects: by-type, or by-place (zulip.<realm>.<type>.channel.<id>, .direct or "+
			".none); a stream keeps its own", "by-type", layout(&r.Layout)),
		opt(catStore, "max-age", "`TIME` that a new stream keeps an event; 0 is for ever", "7d", maxAge(&r.New.MaxAge)),
		opt(catStore, "max-bytes", "`SIZE` of a new stream, such as 10G: its oldest events go first", "no limit",
			size(&r.New.MaxBytes, 1<<20)),
		opt(catStore, "replicas", "`N` servers that keep a new stream", "1", number(&r.New.Replicas, 1, 5)),
		opt(catStore, "publish-path", "`HOW` events are published: auto, fast, atomic or sync", "auto",
			oneOf(&r.Path, stream.PathAuto, stream.PathFast, stream.PathAtomic, stream.PathSync)),
		opt(catStore, "state",
			"`SECTIONS` of what there is in the organization, stored with each new queue and once a day for services "+
				"that start later: "+strings.Join(sectionNames(), ", ")+", or all", "none",
			sections(&r.State), many),
		opt(catStore, "oversize-wait",
			"`TIME` that an event too large for a message waits for an object store that does not take it", "10m",
			duration(&r.OversizeWait, time.Second, 24*time.Hour)),
		opt(catStore, "erase-deleted", "erase what the stream and the object store hold of a message when it is "+
			"deleted at Zulip", "", truth(&r.EraseDeleted), yes),
		opt(catStore, "cloudevents", "make each message a CloudEvent too: headers ce-..., by the binary mode of its NATS "+
			"binding", "", truth(&r.CloudEvents), yes),
		opt(catStore, "moved-from", "`URL` of the organization before it moved to another host, for a stream that "+
			"knows it by that one", "",
			site(&r.MovedFrom)),
		opt(catLease, "no-lease", "do not ask NATS who of several instances works: for one that runs alone", "",
			truth(&c.NoLease), yes),
		opt(catLease, "lease-ttl", "`TIME` that a standby needs to take over, in whole seconds", "4s",
			wholeSeconds(duration(&c.LeaseTTL, 2*time.Second, time.Hour))),
		opt(catStore, "start-from",
			"where the very first start begins: now, a message `ID`, or a date as 2026-01-31 or "+
				"2026-01-31T15:04:05Z", "now",
			startFrom(&r.StartFrom)),

		opt(catLoss, "backfill-max-age", "read back no messages older than `TIME`", "no bound",
			duration(&r.BackfillMaxAge,
				time.Second, 36500*24*time.Hour)),
		opt(catLoss, "backfill-max-messages", "read back at most `N` messages; 0 reads back none", "no bound",
			maxMessages(&r.BackfillMaxMessages)),
	}
}

// logOptions are the same for each command that logs.
func logOptions(level *zerolog.Level, format *LogFormat, defaultLevel string) []*option {
	return []*option{
		opt(catLog, "log-level", "`LEVEL`: trace, debug, info, warn or error", defaultLevel, func(s string) error {
			var name string
			if err := oneOf(&name, "trace", "debug", "info", "warn", "error")(s); err != nil {
				return err
			}
			var err error
			*level, err = zerolog.ParseLevel(name)
			return err
		}),
		opt(catLog, "log-format", "`FORMAT` of the log on stderr: auto, console or json", "auto",
			oneOf(format, LogAuto, LogConsole,
				LogJSON)),
	}
}

// check says what is wrong with settings that are right one by one.
func (c *Config) check() error {
	wrong := c.checkProcess()
	for i := range c.Realms {
		wrong = append(wrong, c.Realms[i].check(c.NATS.URL)...)
	}
	return errors.Join(wrong...)
}

// checkProcess is the part about what holds for all realms. It reads the context of the
// nats command, if there is one.
func (c *Config) checkProcess() (wrong []error) {
	n := &c.NATS
	if c.Context != "" {
		if err := c.useContext(); err != nil {
			wrong = append(wrong, err)
		}
	}
	if c.JSDomain != "" && c.JSAPIPrefix != "" {
		wrong = append(wrong, usageErrorf("--nats-js-domain and --nats-js-api-prefix are two ways to say the same: "+
			"give one"))
	}
	switch {
	case n.Creds != "" && n.NKey != "":
		wrong = append(wrong, usageErrorf("--nats-creds (NATS_CREDS) and --nats-nkey (NATS_NKEY) are two ways to say "+
			"who we are: give one"))
	case n.User == "" && n.Password != "":
		wrong = append(wrong, usageErrorf("--nats-password (NATS_PASSWORD) is given without --nats-user (NATS_USER)"))
	}
	if c.Pprof && c.HTTP == "" {
		wrong = append(wrong, usageErrorf("--pprof (or ZULIP_NATS_PPROF) is given without --http (ZULIP_NATS_HTTP), which "+
			"says where to serve the profiles: add --http 127.0.0.1:8080, or leave it out"))
	}
	switch {
	case n.Cert == "" && n.Key != "":
		wrong = append(wrong, usageErrorf("--nats-key (NATS_KEY) is given without --nats-cert (NATS_CERT)"))
	case n.Cert != "" && n.Key == "":
		wrong = append(wrong, usageErrorf("--nats-cert (NATS_CERT) is given without --nats-key (NATS_KEY)"))
	}
	return wrong
}

// check is the part about one realm. url is that of NATS, empty for the embedded server.
func (r *RealmConfig) check(url string) (wrong []error) {
	if q := &r.Queue; len(q.EventTypes) > 0 && !slices.ContainsFunc(q.EventTypes, r.stores) {
		wrong = append(wrong, usageErrorf("--exclude-types (or ZULIP_NATS_EXCLUDE_TYPES) leaves out all that --event-types "+
			"asks for: leave one of the two out"))
	}
	needy := slices.DeleteFunc(slices.Clone(bridge.NeedMessages), func(name string) bool { return !r.stores(name) })
	if r.Queue.NoDirectMessages && !r.stores("message") && len(needy) > 0 {
		wrong = append(wrong, usageErrorf("--no-direct-messages (or ZULIP_NATS_NO_DIRECT_MESSAGES) looks up in the messages "+
			"stored which events of type %s are about direct ones, and none are stored: all of them would be left out; let "+
			"messages in, or leave these types out with --exclude-types too", strings.Join(needy, ", ")))
	}
	if r.Queue.NoDirectMessages && slices.ContainsFunc(r.Queue.Narrow, func(term [2]string) bool {
		return term[0] == "is" && (term[1] == "dm" || term[1] == "private") || term[0] == "dm" || term[0] == "pm-with"
	}) {
		wrong = append(wrong, usageErrorf("--narrow asks for direct messages alone, and --no-direct-messages (or "+
			"ZULIP_NATS_NO_DIRECT_MESSAGES) leaves them out, so no message would be stored: leave one of the two out"))
	}
	if err := r.carriedOn(); err != nil {
		wrong = append(wrong, err)
	}
	if replicas := r.New.Replicas; replicas > 1 && url == "" {
		wrong = append(wrong, usageErrorf("--replicas (or ZULIP_NATS_REPLICAS): %d servers are asked for, and the "+
			"embedded one is alone: name a cluster with --nats-url, or leave this out", replicas))
	}
	if r.EraseDeleted && !r.stores("delete_message") {
		wrong = append(wrong, usageErrorf("--erase-deleted (or ZULIP_NATS_ERASE_DELETED) needs the events that tell of "+
			"deletions, delete_message: --event-types has to have them, where it is given, and --exclude-types must not"))
	}
	return wrong
}

// eventTypes takes names with commas between, and JSON lists of them as Zulip's API has
// them. A name that is new is taken, since new types come without notice; what can be no
// name of a type is not.
func eventTypes(to *[]string) func(string) error {
	return func(s string) error {
		*to = nil
		for rest := s; strings.TrimSpace(rest) != ""; {
			var names []string
			rest = strings.TrimLeft(rest, " \t\r\n,")
			if strings.HasPrefix(rest, "[") {
				d := json.NewDecoder(strings.NewReader(rest))
				if err := d.Decode(&names); err != nil {
					return fmt.Errorf(`%.200q is no JSON list of names: write it like ["message","reaction"], or message,reaction`, rest)
				}
				rest = strings.TrimSpace(rest[d.InputOffset():])
				if rest != "" && rest[0] != ',' {
					return fmt.Errorf("%.200q stands behind a JSON list: put a comma between", rest)
				}
			} else {
				var name string
				name, rest, _ = strings.Cut(rest, ",")
				if name = strings.TrimSpace(name); name == "" {
					continue
				}
				names = []string{name}
			}
			for _, name := range names {
				if !poller.ValidType(name) {
					like, _ := poller.NearestType(name)
					return fmt.Errorf("%.200q can be no type of events, which are words like update_message (is "+
						"%s meant?)", name, like)
				}
				*to = append(*to, name)
			}
		}
		if len(*to) == 0 {
			return fmt.Errorf("%.200q names no type, and nothing but heartbeats would come: leave the option out for "+
				"all types", s)
		}
		return nil
	}
}

// excludeTypes takes the same. Heartbeats are not to be left out: they carry the position
// and show that the stream lives, and each would leave a record instead.
func excludeTypes(to *[]string) func(string) error {
	return func(s string) error {
		if err := eventTypes(to)(s); err != nil {
			return err
		}
		if slices.Contains(*to, "heartbeat") {
			return errors.New("heartbeats cannot be left out: they carry how far the stream has come, and each would " +
				"leave a record in its place; leave heartbeat out of the list")
		}
		return nil
	}
}

func sectionNames() (names []string) {
	for _, s := range poller.Sections() {
		names = append(names, s.Name)
	}
	return names
}

// sections takes names of sections of the state, with commas between, or all.
func sections(to *[]poller.Section) func(string) error {
	return func(s string) (err error) {
		var names []string
		if err := list(&names)(s); err != nil {
			return err
		}
		if len(names) == 0 {
			return fmt.Errorf("%.60q names no section: write some of %s, or all, or leave the option out", s,
				strings.Join(sectionNames(), ", "))
		}
		if slices.Contains(names, "all") {
			names = sectionNames()
		}
		*to, err = poller.SectionsOf(names)
		return err
	}
}

// stores says whether events of a type are stored.
func (r *RealmConfig) stores(name string) bool {
	return (r.Queue.EventTypes == nil || slices.Contains(r.Queue.EventTypes, name)) &&
		!slices.Contains(r.Queue.ExcludeTypes, name)
}

// carriedOn says which types of events are missing that change what --state asks for.
func (r *RealmConfig) carriedOn() error {
	for _, s := range r.State {
		for _, t := range s.EventTypes {
			if !r.stores(t) {
				return usageErrorf("--state (or ZULIP_NATS_STATE): %s changes by events of type %s, which --event-types or "+
					"--exclude-types leaves out, so nothing would carry that state on: let them come, or leave %s out here",
					s.Name, t, s.Name)
			}
		}
	}
	return nil
}

func realmName(to *string) func(string) error {
	return func(s string) error {
		if _, err := subjects.ParseRealm(s); err != nil {
			return err
		}
		return name(to)(s)
	}
}

func layout(to *subjects.Layout) func(string) error {
	return func(s string) (err error) {
		*to, err = subjects.ParseLayout(s)
		return err
	}
}

// streamName takes what can be the name of a stream (nats-server, jetstream_api.go).
func streamName(to *string) func(string) error {
	return func(s string) error {
		if len(s) > 255 || strings.ContainsAny(s, " \t\r\n.*>/\\") {
			return fmt.Errorf("%.200q can be no name of a stream, which has no dot, blank, star, slash or >", s)
		}
		return name(to)(s)
	}
}

// site takes the address of an organization. What is no such address is not shown.
func site(to *string) func(string) error {
	return func(s string) error {
		if shown := redact.URL(s); !strings.HasPrefix(shown, "https://") && !strings.HasPrefix(shown, "http://") {
			return errors.New("it is no address of an organization: write it like https://old.example.org")
		}
		return text(to)(s)
	}
}

func wholeSeconds(next func(string) error) func(string) error {
	return func(s string) error {
		if err := next(s); err != nil {
			return err
		}
		if d, err := time.ParseDuration(s); err == nil && d%time.Second != 0 {
			return fmt.Errorf("%s is no whole number of seconds, which is all that NATS counts here", s)
		}
		return nil
	}
}

// maxAge takes a duration; 0 is no limit, which the stream's settings know as a negative
// one.
func maxAge(to *time.Duration) func(string) error {
	return func(s string) error {
		if s == "0" {
			*to = -1
			return nil
		}
		return duration(to, time.Minute, 36500*24*time.Hour)(s)
	}
}

func maxMessages(to *int) func(string) error {
	return func(s string) error {
		if err := number(to, 0, 1<<31-1)(s); err != nil {
			return err
		}
		if *to == 0 {
			*to = -1
		}
		return nil
	}
}

func startFrom(to *bridge.StartFrom) func(string) error {
	return func(s string) error {
		*to = bridge.StartFrom{}
		if s == "now" {
			return nil
		}
		if id, err := strconv.ParseInt(s, 10, 64); err == nil && id > 0 {
			to.MessageID = id
			return nil
		}
		for _, layout := range []string{time.RFC3339, time.DateOnly} {
			t, err := time.Parse(layout, s)
			switch {
			case err == nil && t.After(time.Now()):
				return fmt.Errorf("%s has not come yet", s)
			case err == nil:
				to.Time = t
				return nil
			}
		}
		return fmt.Errorf("%.200q is neither now, nor a message id, nor a date like 2026-01-31 or "+
			"2026-01-31T15:04:05Z", s)
	}
}

// natsDir is the folder of the embedded NATS server.
func (c *Config) natsDir() (string, error) {
	if dir := c.StateDir; dir != "" {
		// It would be made, and its name logged.
		if _, err := os.Stat(dir); err != nil && !redact.LikeName(dir) {
			return "", configErrorf("--state-dir does not give the name of a folder: it looks like a key, or has " +
				"line breaks, and is not shown")
		}
		return filepath.Join(dir, "nats"), nil
	}
	// The XDG base directory specification: a relative path in the variable is to be
	// ignored.
	if base := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(base) {
		return filepath.Join(base, "zulip-nats", "nats"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", configErrorf("there is no folder for the embedded NATS server (%w): "+
			"give one with --state-dir, or a server with --nats-url", err)
	}
	return filepath.Join(home, ".local", "state", "zulip-nats", "nats"), nil
}

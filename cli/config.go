package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// Config is what `run` was told. The zero value of a field is its default unless the field says otherwise; [defaults] gives the rest.
type Config struct {
	// Realms are the organizations to follow, each with one account. This version runs one.
	Realms []RealmConfig

	// NATS says how to reach the server. Without a URL there, an embedded server is started.
	NATS stream.ConnectConfig

	// embedded is true once the URL is that of our own server.
	embedded bool

	// NATSPort is where the embedded server listens, on 127.0.0.1. Default 4222.
	NATSPort int

	// StateDir holds what the embedded server stores, in its subfolder nats. Empty: $XDG_STATE_HOME/zulip-nats, or
	// ~/.local/state/zulip-nats. With a NATS URL nothing is kept on this machine.
	StateDir string

	// NoLease runs without asking NATS who of several instances works. Two instances still do not damage the stream, but they are in each
	// other's way at Zulip.
	NoLease bool

	// LeaseTTL is how long a dead instance keeps the lease: the time that a standby needs to take over. Whole seconds. Default 4 s.
	LeaseTTL time.Duration

	// LogLevel and LogFormat: what is logged on stderr, and how. Default info, and auto.
	LogLevel  zerolog.Level
	LogFormat LogFormat
}

// RealmConfig is one organization: the account, what its queue holds, and where it is stored.
type RealmConfig struct {
	// Account says where the site, the e-mail and the key are read from, at the start and again whenever Zulip refuses the key. The zero
	// value: $ZULIP_CONFIG or ~/.zuliprc, and the ZULIP_* variables before what stands there.
	Account poller.Source

	// Name is the realm's name in subjects. Empty: by the site, see [subjects.RealmFromSite].
	Name string

	// Queue says what the queue holds and how long Zulip keeps it when nobody polls, which is the outage that can be survived.
	Queue poller.Options

	// DeleteQueue gives the queue back to Zulip when the program is stopped, for good. Otherwise it is left standing, since the next start
	// resumes it.
	DeleteQueue bool

	// Stream is the stream's name. Empty: whichever stream collects the realm's subjects; if none does, ZULIP_<realm> is created.
	Stream string

	// Path says how events are published. Default auto: as the stream allows.
	Path stream.Path

	// BackfillMaxAge and BackfillMaxMessages bound what is read back from history after a lost queue. Zero: no bound of that kind; -1
	// messages: nothing is read back.
	BackfillMaxAge      time.Duration
	BackfillMaxMessages int

	// StartFrom is where the very first start begins. The zero value: now.
	StartFrom bridge.StartFrom
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
	catZulip = "Zulip"
	catQueue = "What the queue holds (a change makes a new queue)"
	catNATS  = "NATS"
	catStore = "Storing"
	catLoss  = "After a lost queue"
	catLog   = "Log"
)

// options are the flags and variables of `run`; they fill c.
func (c *Config) options() []*option {
	r := &c.Realms[0]
	q := &r.Queue
	n := &c.NATS
	return append([]*option{
		opt(catZulip, "zuliprc",
			"`FILE` that Zulip serves for a bot (Settings > Bots); ZULIP_EMAIL, ZULIP_API_KEY, ZULIP_SITE and so on come before it",
			"$ZULIP_CONFIG, ~/.zuliprc", text(&r.Account.File)),
		opt(catZulip, "realm", "`NAME` of the organization in subjects", "first label of the site's host", realmName(&r.Name)),
		opt(catZulip, "insecure", "do not check the Zulip server's certificate", "", func(s string) error {
			r.Account.Overrides.Insecure = new(bool)
			return truth(r.Account.Overrides.Insecure)(s)
		}, yes),
		opt(catZulip, "delete-queue", "when stopped, delete the queue at Zulip for good; otherwise the next start resumes it", "",
			truth(&r.DeleteQueue), yes),

		opt(catQueue, "event-types", "`TYPES` of events, with commas between", "all", list(&q.EventTypes), many),
		opt(catQueue, "narrow", "`JSON` filter of message events: [[\"channel\", \"announce\"]]", "none", narrow(&q.Narrow)),
		opt(catQueue, "all-public-streams", "messages of all public channels, subscribed or not", "",
			truth(&q.AllPublicStreams), yes),
		opt(catQueue, "apply-markdown", "message content as HTML", "", truth(&q.ApplyMarkdown), yes),
		opt(catQueue, "client-gravatar", "avatar_url is null where clients can compute it; on unless =false", "",
			truth(&q.ClientGravatar), yes),
		opt(catQueue, "slim-presence", "presence events without e-mail addresses", "", truth(&q.SlimPresence), yes),
		opt(catQueue, "queue-life", "`TIME` that Zulip shall keep the queue while nobody polls", "24h",
			duration(&q.Life, time.Second, poller.MostLife)),

		opt(catNATS, "nats-url", "`URL` of a NATS server; more than one for a cluster", "an embedded server on 127.0.0.1",
			natsURLs(&n.URL), many, also("NATS_URL")),
		opt(catNATS, "nats-creds", "credentials `FILE`", "", text(&n.Creds), also("NATS_CREDS")),
		opt(catNATS, "nats-nkey", "`FILE` with an nkey seed", "", text(&n.NKey), also("NATS_NKEY")),
		opt(catNATS, "nats-user", "`NAME` of the user", "", text(&n.User), also("NATS_USER")),
		opt(catNATS, "nats-password", "`PASSWORD`; better in a variable, since others can see the command line", "",
			text(&n.Password), also("NATS_PASSWORD")),
		opt(catNATS, "nats-ca", "PEM `FILE` of who may vouch for the server", "the system's", text(&n.CA), also("NATS_CA")),
		opt(catNATS, "nats-cert", "PEM `FILE` of our certificate", "", text(&n.Cert), also("NATS_CERT")),
		opt(catNATS, "nats-key", "PEM `FILE` of its key", "", text(&n.Key), also("NATS_KEY")),
		opt(catNATS, "nats-port", "`PORT` of the embedded server", "4222", number(&c.NATSPort, 1, 65535)),
		opt(catNATS, "state-dir", "`FOLDER` for what the embedded server stores",
			"$XDG_STATE_HOME/zulip-nats, ~/.local/state/zulip-nats", text(&c.StateDir)),

		opt(catStore, "stream", "`NAME` of the stream", "the one that has the realm's subjects, else ZULIP_<realm> is created",
			text(&r.Stream)),
		opt(catStore, "publish-path", "`HOW` events are published: auto, fast, atomic or sync", "auto",
			oneOf(&r.Path, stream.PathAuto, stream.PathFast, stream.PathAtomic, stream.PathSync)),
		opt(catStore, "no-lease", "do not ask NATS who of several instances works: for one that runs alone", "",
			truth(&c.NoLease), yes),
		opt(catStore, "lease-ttl", "`TIME` that a standby needs to take over, in whole seconds", "4s",
			wholeSeconds(duration(&c.LeaseTTL, 2*time.Second, time.Hour))),
		opt(catStore, "start-from",
			"where the very first start begins: now, a message `ID`, or a date as 2026-01-31 or 2026-01-31T15:04:05Z", "now",
			startFrom(&r.StartFrom)),

		opt(catLoss, "backfill-max-age", "read back no messages older than `TIME`", "no bound", duration(&r.BackfillMaxAge,
			time.Second, 36500*24*time.Hour)),
		opt(catLoss, "backfill-max-messages", "read back at most `N` messages; 0 reads back none", "no bound",
			maxMessages(&r.BackfillMaxMessages)),
	}, logOptions(&c.LogLevel, &c.LogFormat, "info")...)
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
		opt(catLog, "log-format", "`FORMAT` of the log on stderr: auto, console or json", "auto", oneOf(format, LogAuto, LogConsole,
			LogJSON)),
	}
}

// check says what is wrong with settings that are right one by one.
func (c *Config) check() error {
	n := &c.NATS
	var wrong []error
	switch {
	case n.Creds != "" && n.NKey != "":
		wrong = append(wrong, usageErrorf("--nats-creds (NATS_CREDS) and --nats-nkey (NATS_NKEY) are two ways to say who we are: give one"))
	case n.User == "" && n.Password != "":
		wrong = append(wrong, usageErrorf("--nats-password (NATS_PASSWORD) is given without --nats-user (NATS_USER)"))
	}
	switch {
	case n.Cert == "" && n.Key != "":
		wrong = append(wrong, usageErrorf("--nats-key (NATS_KEY) is given without --nats-cert (NATS_CERT)"))
	case n.Cert != "" && n.Key == "":
		wrong = append(wrong, usageErrorf("--nats-cert (NATS_CERT) is given without --nats-key (NATS_KEY)"))
	}
	return errors.Join(wrong...)
}

func realmName(to *string) func(string) error {
	return func(s string) error {
		if _, err := subjects.ParseRealm(s); err != nil {
			return err
		}
		*to = s
		return nil
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
			if t, err := time.Parse(layout, s); err == nil {
				to.Time = t
				return nil
			}
		}
		return fmt.Errorf("%.200q is neither now, nor a message id, nor a date like 2026-01-31 or 2026-01-31T15:04:05Z", s)
	}
}

// stateDir is the folder for what this program keeps on the machine.
func (c *Config) stateDir() (string, error) {
	if c.StateDir != "" {
		return c.StateDir, nil
	}
	// The XDG base directory specification: a relative path in the variable is to be ignored.
	if base := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(base) {
		return filepath.Join(base, "zulip-nats"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", configErrorf("there is no folder for the embedded NATS server (%w): "+
			"give one with --state-dir, or a server with --nats-url", err)
	}
	return filepath.Join(home, ".local", "state", "zulip-nats"), nil
}

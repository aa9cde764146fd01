package cli

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/fleet"
	"zulip-nats/health"
	"zulip-nats/logevent"
	"zulip-nats/poller"
	"zulip-nats/redact"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// newGreeting makes the Zulip side of a realm. load gives the account: once here, and
// again whenever Zulip refuses the key.
func newGreeting(r *RealmConfig, load func() (poller.Account, error), log zerolog.Logger) (*greeting, error) {
	account, err := load()
	if err != nil {
		return nil, err
	}
	realm, err := r.realm(account.Site)
	if err != nil {
		return nil, err
	}
	if err := r.Queue.Validate(); err != nil {
		return nil, err
	}
	log = log.With().Str("realm", realm.String()).Logger()
	zulip := &poller.Poller{
		Client:  &poller.Client{Account: load, UserAgent: userAgent(readBuild().version)},
		Options: r.Queue,
		State:   r.State,
		Log:     log,
	}
	return &greeting{realm: realm, account: account, queue: r.Queue, poller: zulip, log: log}, nil
}

// connect is the connection to NATS, one for all realms; see [stream.Connect].
func connect(ctx context.Context, c *Config, log zerolog.Logger) (*stream.Conn, error) {
	cfg := c.NATS
	cfg.Name, cfg.Log = "zulip-nats", log
	return stream.Connect(ctx, cfg)
}

// awaits waits for a connection: for first once a failure is known, for most otherwise.
// Refused credentials end it at once. down is why there is none.
func awaits(ctx context.Context, conn *stream.Conn, first, most time.Duration) (down health.State, up bool) {
	begin := time.Now()
	waitFor(ctx, func() bool {
		if up = conn.IsConnected(); up {
			return true
		}
		var known bool
		down, known = conn.Disconnected().State()
		waited := time.Since(begin)
		return known && (down.Reason == "refused" || waited >= first) || waited >= most
	})
	return down, up
}

// reached waits until there is a connection, for a command that people wait for: what a
// bridge waits out is an error here, refused credentials at once.
func reached(ctx context.Context, conn *stream.Conn, c *Config, within time.Duration) error {
	down, up := awaits(ctx, conn, within, within)
	shown := redact.URLs(c.NATS.URL)
	switch {
	case up:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case down.Reason == "refused":
		return configErrorf("NATS at %s refuses what we sign in with (%s): %s (--nats-user, --nats-creds, "+
			"--nats-context)", shown, down.Text, natsRemedy(down.Reason))
	}
	return fmt.Errorf("NATS at %s cannot be reached (%s): %s", shown,
		cmp.Or(down.Text, fmt.Sprintf("no answer for %v", within)), natsRemedy(down.Reason))
}

// natsRemedy says what to do about a trouble of the connection, by its kind: see
// [stream.Conn.Disconnected].
func natsRemedy(kind string) string {
	switch kind {
	case "refused":
		return "correct the user and password, the token, or the file of credentials, or give this user to the server"
	case "tls":
		return "look at the CA file (--nats-ca), the certificates of both sides, and the host in the URL"
	case "stranger":
		return "what listens there is no NATS server, or one that hangs: correct the port in --nats-url, or look at the " +
			"server"
	case "absent":
		return "start the server, or correct --nats-url"
	}
	return "look at the server and at --nats-url"
}

// streamConfig says which stream a realm has, for who opens it and for who looks at it.
func streamConfig(c *Config, r *RealmConfig, realm subjects.Realm) stream.Config {
	return stream.Config{Realm: realm.String(), Filter: realm.All(), Name: r.Stream, Domain: c.JSDomain,
		APIPrefix: c.JSAPIPrefix, QueueLife: cmp.Or(r.Queue.Life, poller.DefaultLife), Path: r.Path, New: r.New,
		Erase: r.EraseDeleted}
}

// sharing is this process as one of several that share realms.
type sharing struct {
	*fleet.Instance
	trouble health.Condition // why no lease can be had or renewed
}

// newSharing gives what all bridges of this process acquire their leases by; nil with
// --no-lease. It leaves when ctx ends, and close ends it, behind the bridges and before the
// connection.
func newSharing(ctx context.Context, conn *stream.Conn, c *Config, writer string, log zerolog.Logger) (
	shared *sharing, closing func(), err error) {
	if c.NoLease {
		return nil, func() {}, nil
	}
	s := &sharing{}
	s.Instance, err = fleet.NewInstance(fleet.Config{Conn: conn, Writer: writer, TTL: c.LeaseTTL, Domain: c.JSDomain,
		APIPrefix: c.JSAPIPrefix, Trouble: &s.trouble, Log: log})
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, s.Leave)
	return s, func() {
		stop()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if err := s.Close(last); err != nil {
			log.Debug().Err(err).Msg("this instance could not say that it has ended: its key runs out by itself")
		}
	}, nil
}

// buildBridge builds the bridge of one realm on a connection that outlives it; writer is
// the name of this process, and shared how it shares realms with others. done is called
// behind its Run.
func buildBridge(conn *stream.Conn, c *Config, r *RealmConfig, g *greeting, writer string,
	shared *sharing) (b *bridge.Bridge, done func()) {
	realm, account, log := g.realm, g.account, g.log
	version := readBuild().version

	said := health.Condition{Most: 100} // what is in the log already about the stream
	say := func(line func(zerolog.Logger) *zerolog.Event, stream, text string) {
		if _, news := said.Set(text, text); news {
			line(log).Str("stream", stream).Msg(text)
		}
	}
	var current *stream.Stream
	replicas := 1 // of the stream, and so of the lease's bucket
	cfg := bridge.Config{
		Realm:   realm,
		Site:    account.Site,
		Account: account.Email,
		Poller:  g.poller,
		Open: func(ctx context.Context) (bridge.Stream, error) {
			cfg := streamConfig(c, r, realm)
			if c.embedded && (cfg.Path == "" || cfg.Path == stream.PathAuto) {
				cfg.Path = stream.PathAtomic // it syncs each write: one sync for a batch, not for each message
			}
			cfg.Version, cfg.BeforeCreate = version, g.letIn
			cfg.Warn = func(text string) { logevent.StreamRisky.Warn(log).Msg(text) }
			s, err := stream.Open(ctx, conn, cfg)
			if err != nil {
				return nil, err
			}
			if current == nil && r.EraseDeleted { // later it is told and tried again
				if err := s.CheckErase(ctx); err != nil {
					s.Close()
					return nil, err
				}
			}
			if current != nil {
				current.Close() // of a stream that was deleted
			} else {
				go tryObjects(health.WithoutPulse(ctx), s, realm, writer, log)
			}
			current = s
			if s.Created() {
				logevent.StreamCreated.Info(log).Str("stream", s.Name()).Msg("a stream is created")
			}
			for _, w := range s.Warnings() {
				say(logevent.StreamRisky.Warn, s.Name(), w)
			}
			// What one replica risks in a power cut is for whoever makes the stream to
			// know, once. Our own server is started without that risk.
			for _, w := range s.Usual() {
				if s.Created() && !c.embedded {
					say(logevent.StreamRisky.Warn, s.Name(), w)
				} else {
					log.Debug().Str("stream", s.Name()).Msg(w)
				}
			}
			for _, u := range s.Unlike() {
				say(logevent.StreamUnlike.Warn, s.Name(),
					fmt.Sprintf("stream %s is there already and stays as it is: its %s is %s, not %s; change it "+
						"yourself with: nats stream edit %s", s.Name(), u.Setting, u.Has, u.Asked, s.Name()))
			}
			g.stream = s.Name()
			if info, err := s.Info(ctx); err == nil {
				replicas, g.keeps = info.Replicas, age(info.MaxAge)
				if g.opened != nil {
					g.opened(s.Name(), info.LastSeq)
				}
			}
			return s, nil
		},
		Following:         g.following,
		Writer:            writer,
		StartFrom:         r.StartFrom,
		RefillMaxAge:      r.BackfillMaxAge,
		RefillMaxMessages: r.BackfillMaxMessages,
		DeleteQueue:       r.DeleteQueue,
		Again:             fleet.ErrAgain,
		OversizeWait:      r.OversizeWait,
		EraseDeleted:      r.EraseDeleted,
		Disconnected:      conn.Disconnected(),
		MovedFrom:         r.MovedFrom,
		CloudEvents:       r.CloudEvents,
		Version:           version,
		Log:               log,
	}
	if shared != nil {
		cfg.LeaseTrouble = &shared.trouble
		cfg.Acquire = func(ctx context.Context, standby func(string)) (bridge.Lease, error) {
			l, err := shared.Acquire(ctx, realm.String(), replicas, func(h fleet.Holder) {
				standby(h.Writer)
				g.what(true)
				logevent.Standby.Info(log).Str("leader", h.Writer).Str("host", h.Host).Time("since", h.Since).
					Msg("standing by: another instance leads")
			})
			if unsupported, ok := errors.AsType[*fleet.UnsupportedError](err); ok {
				if _, news := shared.trouble.Set("unsupported", err.Error()); news {
					logevent.LeaseUnavailable.Warn(log).Err(unsupported).Msg("no lease is available: working without " +
						"one, which is safe; two instances would only end each other's polls")
				}
				return nil, nil
			}
			if err != nil {
				return nil, err // and not a nil *fleet.Lease, which would be no nil interface
			}
			return l, nil
		}
	}
	return bridge.New(cfg), func() {
		if current != nil {
			current.Close()
		}
	}
}

// tryObjects says at the start, and not when the first large event comes, that the object
// store cannot be made or written.
func tryObjects(ctx context.Context, s *stream.Stream, realm subjects.Realm, writer string, log zerolog.Logger) {
	err := s.PutObject(ctx, realm.String()+"/start", []byte(writer))
	if err != nil && ctx.Err() == nil && !errors.Is(err, nats.ErrConnectionClosed) { // else it is we who end
		logevent.ObjectStoreAway.Warn(log).Err(err).Str("object_store", s.Bucket()).
			Msg("the object store for events that are too large for a message takes nothing now; such an event will " +
				"wait for --oversize-wait, and is rejected then: give our user the right to make and to write it, or " +
				"room")
	}
}

// realm is the realm with the layout that was chosen.
func (r *RealmConfig) realm(site string) (subjects.Realm, error) {
	realm, err := realmOf(r.Name, site)
	return realm.By(r.Layout), err
}

// realmOf is the name that was chosen, else the one that the site gives.
func realmOf(name, site string) (subjects.Realm, error) {
	if name != "" {
		r, err := subjects.ParseRealm(name)
		if err != nil {
			return subjects.Realm{}, usageError{err}
		}
		return r, nil
	}
	r, err := subjects.RealmFromSite(site)
	if err != nil {
		return subjects.Realm{}, configError{err}
	}
	return r, nil
}

// writerName names this process: a person finds the machine by it, and no two processes
// share it, containers with the same host name and process id included.
func writerName() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "unknown"
	}
	return fmt.Sprintf("%s-%d-%s", printable(host, 60), os.Getpid(), strings.ToLower(rand.Text()[:6]))
}

// userAgent is "zulip-nats/1.2.3". Zulip takes the part before the slash as the client's
// name.
func userAgent(version string) string {
	return "zulip-nats/" + printable(strings.Trim(version, "()"), 60)
}

// printable leaves letters, digits and a few marks of a name, so that it can stand in
// headers.
func printable(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '.', r == '-', r == '_', r == '+':
			return r
		}
		return '-'
	}, s)
	return s[:min(len(s), most)]
}

package cli

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/lease"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// parts is a bridge with what it holds on to.
type parts struct {
	bridge *bridge.Bridge
	nats   *nats.Conn
}

func (p *parts) close() { p.nats.Close() }

// wire builds the bridge of one realm. load gives the account: once here, and again whenever Zulip refuses the key.
func wire(ctx context.Context, c *Config, r *RealmConfig, load func() (poller.Account, error), log zerolog.Logger) (*parts, error) {
	account, err := load()
	if err != nil {
		return nil, err
	}
	realm, err := realmOf(r.Name, account.Site)
	if err != nil {
		return nil, err
	}
	if err := r.Queue.Validate(); err != nil {
		return nil, err
	}
	log = log.With().Str("realm", realm.String()).Logger()
	version := readBuild().version

	connect := c.NATS
	connect.Name = "zulip-nats " + realm.String()
	connect.Log = log
	nc, err := stream.Connect(ctx, connect)
	if err != nil {
		return nil, err
	}

	writer := writerName()
	// What a stream of one replica risks in a power cut is for the operator of a server to know. Our own one is started without that risk,
	// and nobody else makes streams there.
	warning := zerolog.WarnLevel
	if c.embedded {
		warning = zerolog.DebugLevel
	}
	var said []string // the warnings about the stream that are in the log already
	var current *stream.Stream
	replicas := 1 // of the stream, and so of the lease's bucket
	path := r.Path
	if c.embedded && (path == "" || path == stream.PathAuto) {
		path = stream.PathAtomic // the embedded server syncs each write to the disk: one sync for a batch, not one for each message
	}
	b := bridge.Config{
		Realm:   realm,
		Site:    account.Site,
		Account: account.Email,
		Poller: &poller.Poller{
			Client:  &poller.Client{Account: load, UserAgent: userAgent(version)},
			Options: r.Queue,
			Log:     log,
		},
		Open: func(ctx context.Context) (bridge.Stream, error) {
			s, err := stream.Open(ctx, nc, stream.Config{
				Realm:     realm.String(),
				Filter:    realm.All(),
				Name:      r.Stream,
				QueueLife: cmp.Or(r.Queue.Life, poller.DefaultLife),
				Path:      path,
				Version:   version,
			})
			if err != nil {
				return nil, err
			}
			if current != nil {
				current.Close() // of a stream that was deleted
			}
			current = s
			if s.Created() {
				log.Info().Str("stream", s.Name()).Msg("a stream is created")
			}
			for _, w := range s.Warnings() {
				if !slices.Contains(said, w) {
					said = append(said, w)
					log.WithLevel(warning).Str("stream", s.Name()).Msg(w)
				}
			}
			if info, err := s.Info(ctx); err == nil {
				replicas = info.Replicas
			}
			return s, nil
		},
		Writer:            writer,
		StartFrom:         r.StartFrom,
		RefillMaxAge:      r.BackfillMaxAge,
		RefillMaxMessages: r.BackfillMaxMessages,
		Version:           version,
		Log:               log,
	}
	alone := false // said that there is no lease to be had
	if !c.NoLease {
		b.Acquire = func(ctx context.Context) (bridge.Lease, error) {
			l, err := lease.Acquire(ctx, lease.Config{Conn: nc, Realm: realm.String(), Writer: writer, TTL: c.LeaseTTL, Replicas: replicas, Log: log,
				Standby: func(h lease.Holder) {
					log.Info().Str("leader", h.Writer).Str("host", h.Host).Time("since", h.Since).Msg("standing by: another instance leads")
				}})
			if unsupported, ok := errors.AsType[*lease.UnsupportedError](err); ok {
				if !alone {
					alone = true
					log.Warn().Err(unsupported).Msg("no lease can be had: working without one, which is safe; two instances would only end each other's polls")
				}
				return nil, nil
			}
			if err != nil {
				return nil, err // and not a nil *lease.Lease, which would be no nil interface
			}
			return l, nil
		}
	}
	return &parts{bridge: bridge.New(b), nats: nc}, nil
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

// writerName names this process: a person finds the machine by it, and no two processes share it, containers with the same host name
// and process id included.
func writerName() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "unknown"
	}
	return fmt.Sprintf("%s-%d-%s", printable(host, 60), os.Getpid(), strings.ToLower(rand.Text()[:6]))
}

// userAgent is "zulip-nats/1.2.3". Zulip takes the part before the slash as the client's name.
func userAgent(version string) string {
	return "zulip-nats/" + printable(strings.Trim(version, "()"), 60)
}

// printable leaves letters, digits and a few marks of a name, so that it can stand in headers.
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

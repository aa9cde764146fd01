// Package zulipsim is a Zulip organization in memory: the half of Zulip that a client of
// the events API can see, with its real rules and not the convenient ones. Tests point a
// client at it and then make things happen, on the good side (messages, edits, restarts)
// and on the bad (crashes, expired queues, half an answer); the demo lets it chat.
//
// What belongs here is whatever Zulip 10.2 does on the wire, and what later levels do
// where they differ: event queues and their acknowledgement, rate limits, history,
// refusals with their texts. The facts come from zulip/zulip (file names are named at the
// rules) and from traffic that was recorded from a real server; captured_test.go replays
// that traffic and holds the simulator against it. Nothing here knows of NATS or of the
// bridge.
//
// A Server is ready as its zero value. It runs on a real port ([Server.Start],
// [Server.Listen]) or over in-memory pipes ([Server.Client]), where it works inside a
// testing/synctest bubble: it keeps no goroutine but those of HTTP, and reads no clock
// but time.Now. Sweeps and rate limits are computed when somebody looks.
//
// It also watches its clients. [Server.Complain] makes a test fail when an event is
// acknowledged that is not stored yet, when an id is acknowledged that was never given
// out, or when a client asks sooner than a Retry-After allowed.
package zulipsim

import (
	"cmp"
	"context"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Server is one Zulip organization. The zero value is a Zulip 10.2 with the limits it
// ships with and nobody in it. Set fields before the first use. All methods may be called
// at any time from any goroutine, unless they say otherwise.
type Server struct {
	// Version is zulip_version in answers. Zero: "10.2".
	Version string
	// FeatureLevel is zulip_feature_level, and it is what branches behaviour: from 481 on
	// the queue's life is asked for by idle_queue_timeout and no more by
	// queue_lifespan_secs, from 393 on deletions list their messages in order, and so on.
	// Zero: 372.
	FeatureLevel int
	// RealmURL is the organization's canonical address. Zero: the URL of Start or Listen,
	// else "http://zulip.test".
	RealmURL string
	// RealmName is the display name. Zero: "Acme".
	RealmName string
	// StringID is what messages have as sender_realm_str. Zero: "acme".
	StringID string

	// Heartbeat says how long a poll waits before a heartbeat ends it. Nil: 45 s and up
	// to ten whole seconds more, by chance (zerver/tornado/event_queue.py,
	// connect_handler).
	Heartbeat func() time.Duration
	// DefaultLife is how long a queue lives without a waiting poll if the client asks for
	// nothing. Zero: 10 minutes.
	DefaultLife time.Duration
	// MaxLife caps what a client asks for, silently below level 481. Zero: 7 days.
	MaxLife time.Duration
	// GrantCap, if not zero, grants no more than this, whatever was asked: an
	// administrator's or a later version's stricter cap.
	GrantCap time.Duration
	// SweepEvery is how often idle queues are looked for; a queue dies at a sweep, not
	// before. Zero: 60 s.
	SweepEvery time.Duration
	// SweepFirst is when the first sweep comes, counted from the first use. Zero:
	// SweepEvery.
	SweepFirst time.Duration
	// MaxMessageLength is how many code points a message may have; longer ones are cut.
	// Zero: 10,000.
	MaxMessageLength int
	// NoGzip sends answers plain although the client would take gzip: for benchmarks.
	NoGzip bool
	// RoundTrip, if not zero, is the time on the way, half of it before the server sees a
	// request and half before the client sees the answer.
	RoundTrip time.Duration
	// ResetPolls makes Down and Crash reset waiting polls as a server without a proxy
	// before it does; else they end with 502.
	ResetPolls bool

	// EventsRules limit GET and DELETE of /events, by a leaky bucket for each account
	// (TornadoInMemoryRateLimiterBackend in zerver/lib/rate_limiter.py). Nil: 200 in 60
	// s. Empty but not nil: no limit and no headers.
	EventsRules []RateRule
	// APIRules limit everything else, by a sliding window for each account
	// (RedisRateLimiterBackend). Nil and empty as above.
	APIRules []RateRule

	// Hosts says which organization a Host header means. Nil: every host is this
	// organization.
	Hosts func(host string) Host

	// Seed is where queue ids and random waits come from.
	Seed uint64

	// DuringRegister, if set, is called in the middle of every register, when the queue
	// exists already and the state has not been read: events that come now are counted in
	// the answer's last_event_id (do_events_register in zerver/lib/events.py).
	DuringRegister func(queue string)
	// OnAck, if set, is called for each event that a poll is about to acknowledge, before
	// it is thrown away.
	OnAck func(queue string, id int64, raw []byte)
	// Clock is what messages are dated by and what the Date header says, where it is not
	// to be everybody's; nil: time.Now. How long things take (idle queues, waits, rate
	// limits) goes by time.Now.
	Clock func() time.Time
	// Forget keeps what is over out of memory: requests, and the events that were pruned.
	// For long runs.
	Forget bool
	// Tolerate names what Complain is to pass over.
	Tolerate []Complaint

	mu         sync.Mutex
	ready      bool // defaults are filled in
	rand       *rand.Rand
	started    time.Time
	nextSweep  time.Time
	generation int64 // server_generation: when Tornado was started last
	down       chan struct{}
	backlog    []func() // what happened while down, to be put in queues after the restart event
	closedDown bool     // the organization is deactivated

	accounts   map[string]*Account // by lower-case address
	people     []*Account          // in order of id
	channels   map[string]*Channel // by lower-case name
	channelIDs map[int64]*Channel
	nextUser   int64
	nextChan   int64
	messages   []*message // by id, those that are committed
	nextMsg    int64
	nextSub    int64

	// The state that is not people or channels, where it was changed, by member; what each
	// register answered with, by queue.
	changedState                                   map[string]string
	registered                                     map[string]registered
	nextGroup, nextEmoji, nextLinkifier, nextField int64

	queues    map[string]*queue
	queueList []*queue

	tornado map[bucketKey]time.Time // EventsRules: when each bucket will be empty
	django  map[int64][]time.Time   // APIRules: when the account's requests were, oldest first
	told    map[toldKey]time.Time   // when an account may ask again

	faults     []*fault
	requests   []*Request
	complaints []string
	complain   []*complainer

	net memnet
}

// RateRule allows Count requests of one account in each Window. Several rules stand in
// order of their windows, the shortest first.
type RateRule struct {
	Count  int
	Window time.Duration
}

// void says that a rule limits nothing.
func (r RateRule) void() bool { return r.Count < 1 || r.Window <= 0 }

// Host is what a host name stands for.
type Host int

// What a host name can stand for. A key that is good here is refused on a host of no or
// of another organization.
const (
	ThisOrganization Host = iota
	NoOrganization
	HostNotAllowed // Django refuses the request with an HTML page
)

// Default addresses: who sends messages that name no sender, and the bot that tells about
// moved topics and new channels.
const (
	DefaultSender   = "ada@example.com"
	notificationBot = "notification-bot@zulip.com"
)

// now is the time that the server tells.
func (s *Server) now() time.Time {
	if s.Clock == nil {
		return time.Now()
	}
	return s.Clock()
}

// lock locks the server, filling in the defaults at first use, and does the sweeps that
// are due.
func (s *Server) lock() {
	s.mu.Lock()
	s.init()
	s.sweep(time.Now())
}

func (s *Server) init() {
	if s.ready {
		return
	}
	s.ready = true
	s.Version = cmp.Or(s.Version, "10.2")
	s.FeatureLevel = cmp.Or(s.FeatureLevel, 372)
	s.RealmURL = cmp.Or(s.RealmURL, "http://zulip.test")
	s.RealmName = cmp.Or(s.RealmName, "Acme")
	s.StringID = cmp.Or(s.StringID, "acme")
	s.DefaultLife = cmp.Or(s.DefaultLife, 10*time.Minute)
	s.MaxLife = cmp.Or(s.MaxLife, 7*24*time.Hour)
	s.SweepEvery = cmp.Or(s.SweepEvery, time.Minute)
	s.SweepFirst = cmp.Or(s.SweepFirst, s.SweepEvery)
	s.MaxMessageLength = cmp.Or(s.MaxMessageLength, 10_000)
	if s.EventsRules == nil {
		s.EventsRules = []RateRule{{200, time.Minute}}
	}
	if s.APIRules == nil {
		s.APIRules = []RateRule{{200, time.Minute}}
	}
	s.EventsRules = slices.DeleteFunc(slices.Clone(s.EventsRules), RateRule.void)
	s.APIRules = slices.DeleteFunc(slices.Clone(s.APIRules), RateRule.void)
	s.rand = rand.New(rand.NewPCG(s.Seed, 0x7a756c6970))
	s.started = time.Now()
	s.nextSweep = s.started.Add(s.SweepFirst)
	s.generation = s.started.Unix()
	s.accounts = make(map[string]*Account)
	s.channels = make(map[string]*Channel)
	s.channelIDs = make(map[int64]*Channel)
	s.queues = make(map[string]*queue)
	s.tornado = make(map[bucketKey]time.Time)
	s.django = make(map[int64][]time.Time)
	s.told = make(map[toldKey]time.Time)
	s.nextUser, s.nextChan, s.nextMsg, s.nextSub = 8, 4, 1, 1
	bot := s.account(notificationBot)
	bot.ID, bot.FullName, bot.NoSubscriptions, bot.system = 6, "Notification Bot", true, true
	s.nextUser = 9
}

// Start serves on a port of 127.0.0.1 until the test ends, and returns the base URL,
// without a slash at its end.
func (s *Server) Start(t testing.TB) string {
	t.Helper()
	url, stop, err := s.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatalf("zulipsim: %v", err)
	}
	t.Cleanup(stop)
	return url
}

// Listen serves on addr ("127.0.0.1:0" for any free port) until stop is called, which
// cuts all connections and waits for the requests that are under way.
func (s *Server) Listen(addr string) (url string, stop func(), err error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return "", nil, err
	}
	url = "http://" + l.Addr().String()
	s.mu.Lock()
	if !s.ready {
		s.RealmURL = cmp.Or(s.RealmURL, url)
	}
	s.init()
	s.mu.Unlock()
	return url, serve(l, s), nil
}

// serve runs an HTTP server on l; the returned func ends it, connections included, and
// waits for it.
func serve(l net.Listener, h http.Handler) (stop func()) {
	var (
		mu     sync.Mutex // guards closed, so that no request is added once stop waits for them
		closed bool
		busy   sync.WaitGroup
	)
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			if closed {
				mu.Unlock()
				panic(http.ErrAbortHandler)
			}
			busy.Add(1)
			mu.Unlock()
			defer busy.Done()
			h.ServeHTTP(w, r)
		}),
		ErrorLog: discard,
	}
	busy.Go(func() { srv.Serve(l) })
	return func() {
		mu.Lock()
		closed = true
		mu.Unlock()
		srv.Close()
		busy.Wait()
	}
}

// Client returns an HTTP client that reaches the server over in-memory pipes, whatever
// host and port a URL names. Everything it starts belongs to the synctest bubble of the
// first caller; call Close before the bubble ends.
func (s *Server) Client() *http.Client { return &http.Client{Transport: s.net.transport(s)} }

// Close ends what Client started: it cuts the connections and waits for the requests that
// are under way.
func (s *Server) Close() { s.net.close() }

// sleep waits for d or until ctx is done.
func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func lower(s string) string { return strings.ToLower(s) }

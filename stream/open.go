package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/redact"
)

// Path is a way to publish two or more messages. A single message always goes alone.
type Path string

const (
	// PathAuto takes the fastest path that the stream and the server offer: fast ingest,
	// else atomic batches, else sync; atomic batches before fast ingest where the round
	// trip is longer than 5 ms, since they need one and fast ingest two.
	PathAuto Path = "auto"
	// PathFast is fast ingest (NATS ADR-50): messages are stored as they come, each with
	// its own expectation, until one is refused.
	PathFast Path = "fast"
	// PathAtomic is the atomic batch (NATS ADR-50): all or nothing, at most 1,000
	// messages each.
	PathAtomic Path = "atomic"
	// PathSync is one message and one acknowledgement after the other.
	PathSync Path = "sync"
)

// Config says which stream it is and how it is written. Realm and Filter are required.
type Config struct {
	// Realm is the realm's token in subjects and names.
	Realm string
	// Filter is the subject of all messages of the realm: zulip.<realm>.>
	Filter string
	// Name is the stream's name. Empty: the stream that captures Filter, whatever its
	// name, else a new one, ZULIP_<realm>.
	Name string
	// Domain is the JetStream domain of the stream, for a connection by way of a leaf
	// node. Empty is the connection's own.
	Domain string
	// APIPrefix begins the subjects of JetStream's API where the account imports it from
	// another one, instead of $JS.API. The subjects of the realm and of the object store
	// keep their names: the account imports those too, as services.
	APIPrefix string
	// QueueLife is how long the other side keeps what we have not stored yet. A stream
	// that forgets sooner gets a warning.
	QueueLife time.Duration
	// Path forces a publish path; empty is PathAuto. A path that the stream does not
	// offer is a ConfigError.
	Path Path
	// AckTimeout is how long a write may go without any sign of the server, at least; 0
	// is 2 s. It is four round trips where the server is farther away than that, a minute
	// at most.
	AckTimeout time.Duration
	// Bucket is the object store for large messages; empty is zulip_<realm>.
	Bucket string
	// Erase: what is removed from the object store is overwritten there. See
	// [Stream.CheckErase].
	Erase bool
	// Version is noted in the metadata of a stream that we make.
	Version string
	// New is for a stream that we make. An existing stream is never changed.
	New NewStream
	// Warn gets a sentence for what is risky in settings that were changed after Open,
	// see [Stream.Warnings] and [Stream.Usual]. Nil: nobody wants to know.
	Warn func(string)
	// BeforeCreate is asked before a stream is made, and may wait; its error is Open's,
	// as [ErrNotMade]. Nil: there is nothing to ask.
	BeforeCreate func(context.Context) error
}

// ErrNotMade says that there is no stream, and that BeforeCreate let none be made.
var ErrNotMade = errors.New("the stream is not made")

// NewStream has the settings of a new stream that a user may choose. The zero value is a
// file stream with one replica that keeps seven days.
type NewStream struct {
	Memory   bool          // store in memory instead of files
	Replicas int           // 0 is 1; 3 survives the loss of a server and of its disk
	MaxAge   time.Duration // 0 is 7 days, or QueueLife if that is longer; below 0 is for ever
	MaxBytes int64         // 0 is no limit
}

const (
	defaultAckTimeout = 2 * time.Second
	defaultMaxAge     = 7 * 24 * time.Hour
	defaultDuplicates = 2 * time.Minute
	shortAge          = time.Hour
	apiTimeout        = 5 * time.Second
	// API levels are counted in nats-server, jetstream_versioning.go.
	levelAtomic = 2 // nats-server 2.12
	levelFast   = 4 // nats-server 2.14
)

// defaultAPI begins the subjects of JetStream's API, where no domain or prefix says
// otherwise.
const defaultAPI = "$JS.API."

// API is what the subjects of JetStream's API begin with, its last dot included: in a
// domain, under a prefix by which an account imports it, or as usual. At most one of the
// two may be given. Errors are [*ConfigError].
func API(domain, prefix string) (string, error) {
	switch {
	case domain != "" && prefix != "":
		return "", &ConfigError{Setting: "JetStream domain",
			Reason: "a domain and an API prefix are two ways to say the same; give one of them"}
	case prefix != "":
		return strings.TrimSuffix(prefix, ".") + ".", checkSubject("JetStream API prefix", prefix)
	case strings.Contains(domain, "."):
		return "", &ConfigError{Setting: "JetStream domain",
			Reason: fmt.Sprintf("%q has a dot in it, and a domain is one word", redact.Text(domain))}
	case domain != "":
		return "$JS." + domain + ".API.", checkSubject("JetStream domain", domain)
	}
	return defaultAPI, nil
}

// Oldest is the oldest nats-server that is supported: the first that obeys the filter of
// an expectation, see [obeysFilter]. Before it the promise holds in a stream of our own
// only.
const Oldest = "2.11.11 (of the 2.12 line: 2.12.2)"

// obeysFilter says whether a nats-server compares Nats-Expected-Last-Subject-Sequence
// with the newest message on the subjects that
// Nats-Expected-Last-Subject-Sequence-Subject names.
//
// Before 2.11.0 it does not know the second header, and compares with the message's own
// subject. Up to 2.11.10 and 2.12.1 it does not find the first header if the second one,
// whose name begins alike, stands before it (client.go, sliceHeader), and then compares
// with nothing. The order is not ours to choose: nats.go writes headers in that of a map.
// Half of such writes were let in when this was tried on 2.11.0.
func obeysFilter(version string) bool {
	var major, minor, patch int
	if n, _ := fmt.Sscanf(version, "%d.%d.%d", &major, &minor, &patch); n < 3 {
		return false // servers before 2.11 do not say what they are
	}
	switch {
	case major != 2:
		return major > 2
	case minor == 11:
		return patch >= 11
	case minor == 12:
		return patch >= 2
	}
	return minor > 12
}

// Supported says whether a nats-server of that version is one that is supported, see
// [Oldest]. An empty version is that of a server before 2.11.
func Supported(version string) bool { return obeysFilter(version) }

// Stream is one JetStream stream, verified when it was opened. Its methods may be called
// at the same time; two Appends wait for each other.
type Stream struct {
	link     *link
	cfg      Config
	name     string
	domain   string // as the stream's server says it, and as its acknowledgements must
	api      string // prefix of JetStream's API
	stem     string // what subjects under the filter begin with
	label    string // begins the errors of a write
	ackStart []byte // what the acknowledgement of a single message begins with
	created  bool
	unlike   []Unlike

	mu       sync.Mutex // guards what follows
	settings settings
	warnings []string // as of the last look
	usual    []string

	stepped atomic.Uint64 // the epoch in which only sync goes, plus one

	edits   atomic.Uint64      // how often the server told that the stream was changed or deleted
	hearing *nats.Subscription // for that; nil on a connection that is closed

	writing sync.Mutex // held by Append and PutObject; guards what follows
	out     writer
}

// Info is what a stream says about itself.
type Info struct {
	FirstSeq, LastSeq uint64
	// Messages counts all messages in the stream, of all subjects.
	Messages uint64
	Bytes    uint64
	// FirstTime is when the oldest message was stored; zero in an empty stream.
	FirstTime time.Time
	// MaxAge is how long the stream keeps a message; 0 is for ever.
	MaxAge time.Duration
	// MaxPerSubject is how many messages of one subject it keeps; below 1 means all.
	MaxPerSubject int64
	// Replicas is on how many servers it is kept.
	Replicas int
	// Created tells a stream from another of the same name that was made after it was
	// deleted.
	Created time.Time
	// Leader is the server that leads the stream; empty on a single server.
	Leader string
}

// streamInfo is JetStream's answer to STREAM.INFO.
type streamInfo struct {
	apiReply
	jetstream.StreamInfo
}

func (i *streamInfo) info() Info {
	info := Info{
		FirstSeq: i.State.FirstSeq, LastSeq: i.State.LastSeq, Messages: i.State.Msgs, Bytes: i.State.Bytes,
		MaxAge:        i.Config.MaxAge,
		MaxPerSubject: i.Config.MaxMsgsPerSubject, Replicas: i.Config.Replicas,
		Created: i.Created,
	}
	if i.State.Msgs > 0 {
		info.FirstTime = i.State.FirstTime
	}
	if i.Cluster != nil {
		info.Leader = i.Cluster.Leader
	}
	return info
}

// level is the API level of the server that leads the stream; 0 for servers before 2.11.
func level(c *jetstream.StreamConfig) int {
	level, _ := strconv.Atoi(c.Metadata["_nats.level"]) // absent or nonsense: as old as can be
	return level
}

// version is that of the server that leads the stream; empty for servers before 2.11.
func version(c *jetstream.StreamConfig) string { return c.Metadata["_nats.ver"] }

// oldServer names the server that leads the stream, for a person. One that does not say
// its version has often that of the one that we are connected to.
func oldServer(c *jetstream.StreamConfig, nc *nats.Conn) string {
	if v := version(c); v != "" {
		return "nats-server " + v
	}
	if v := nc.ConnectedServerVersion(); v != "" && !obeysFilter(v) {
		return "nats-server " + v
	}
	return "a nats-server older than 2.11"
}

// settings is what the publish paths need to know of the stream's configuration.
type settings struct {
	dedicated   bool
	obeysFilter bool // see the function
	file        bool
	fast        bool
	atomic      bool
	batchMax    int   // messages in an atomic batch
	maxMsgSize  int64 // -1 is no limit
}

// DefaultName is the name of a realm's stream, where no other is chosen.
func DefaultName(realm string) string { return "ZULIP_" + realm }

// Open finds the stream, or makes it if there is none, and verifies it. An existing
// stream is never changed.
//
// Settings that break the promise come back as a [*ConfigError], which no waiting heals.
// All else is an [*Error]: Unavailable while NATS, JetStream or the stream's leader is
// not ready, which the caller repeats.
func Open(ctx context.Context, conn *Conn, cfg Config) (*Stream, error) {
	cfg.Path = cmp.Or(cfg.Path, PathAuto)
	cfg.AckTimeout = cmp.Or(cfg.AckTimeout, defaultAckTimeout)
	cfg.Bucket = cmp.Or(cfg.Bucket, "zulip_"+cfg.Realm)
	switch cfg.Path {
	case PathAuto, PathFast, PathAtomic, PathSync:
	default:
		return nil, &ConfigError{Setting: "publish path",
			Reason: fmt.Sprintf("%q is none of auto, fast, atomic, sync", cfg.Path)}
	}
	stem, open := strings.CutSuffix(cfg.Filter, ">")
	if !open || !strings.HasSuffix(stem, ".") || strings.ContainsAny(stem, "*> \t\r\n") {
		return nil, &ConfigError{Setting: "filter",
			Reason: fmt.Sprintf("%q is not of the form zulip.realm.>", cfg.Filter)}
	}
	api, err := API(cfg.Domain, cfg.APIPrefix)
	if err != nil {
		return nil, err
	}
	s := &Stream{link: conn.link, cfg: cfg, api: api, stem: stem}
	info, err := s.find(ctx)
	if err != nil {
		return nil, err
	}
	s.name, s.domain = info.Config.Name, info.Domain
	s.label = "stream " + s.name + ": write"
	s.ackStart = fmt.Appendf(nil, `{"stream":%q,"seq":`, s.name)
	if s.domain != "" {
		s.ackStart = fmt.Appendf(nil, `{"stream":%q,"domain":%q,"seq":`, s.name, s.domain)
	}
	if cfg.Domain != "" && info.Domain != cfg.Domain {
		return nil, &ConfigError{Stream: s.name, Setting: "domain",
			Reason: fmt.Sprintf("it is in JetStream domain %q, not in %q",
				info.Domain, cfg.Domain)}
	}
	if err := s.check(info); err != nil {
		return nil, err
	}
	s.hear()
	s.warnings, s.usual = s.judge(&info.Config)
	if !s.created {
		s.unlike = cfg.New.unlike(&info.Config)
	}
	if err := s.out.open(ctx, s); err != nil {
		s.unhear()
		return nil, err
	}
	return s, nil
}

// judge is [warnings], and what there is to say of the server that leads the stream.
func (s *Stream) judge(c *jetstream.StreamConfig) (risky, usual []string) {
	risky, usual = warnings(c, s.cfg.QueueLife)
	if !obeysFilter(version(c)) {
		older := ""
		if version(c) == "" {
			older = "; before 2.11 no lease is available"
		}
		risky = append(risky, fmt.Sprintf("stream %s: %s leads it, and the oldest that is supported is nats-server "+
			"%s: older ones serve as long as the stream captures nothing but %s%s; update the "+
			"server", c.Name, oldServer(c, s.link.nc), Oldest,
			s.cfg.Filter, older))
	}
	if level(c) < levelAtomic {
		usual = append(usual, fmt.Sprintf("stream %s: %s leads it, which takes one message after the other: a backlog "+
			"is stored more slowly than with nats-server 2.12 (atomic batches) or 2.14 (fast ingest)", c.Name,
			oldServer(c, s.link.nc)))
	}
	return risky, usual
}

// warn tells of what has become risky since it was last looked at.
func (s *Stream) warn(c *jetstream.StreamConfig) {
	risky, usual := s.judge(c)
	s.mu.Lock()
	was := slices.Concat(s.warnings, s.usual)
	s.warnings, s.usual = risky, usual
	s.mu.Unlock()
	for _, text := range slices.Concat(risky, usual) {
		if s.cfg.Warn != nil && !slices.Contains(was, text) {
			s.cfg.Warn(text)
		}
	}
}

// advisories begin the subjects on which a server tells what becomes of streams
// (nats-server, jetstream_api.go). They are the same in each JetStream domain.
const advisories = "$JS.EVENT.ADVISORY.STREAM."

// hear listens for changes of the stream. Where the user may not, or no news come by
// (through a leaf node, say), a change is found when the settings are read the next time
// for another reason.
func (s *Stream) hear() {
	s.link.mu.Lock()
	s.link.listening[s] = struct{}{}
	s.link.mu.Unlock()
	// One subscription for both. Its messages go to the link's channel, for all streams,
	// since one with a function of its own holds a goroutine.
	s.hearing, _ = s.link.nc.ChanSubscribe(advisories+"*."+s.name, s.link.advisories)
}

func (s *Stream) unhear() {
	_ = s.hearing.Unsubscribe() // fails only where the connection, and the subscription with it, is gone
	s.link.mu.Lock()
	delete(s.link.listening, s)
	s.link.mu.Unlock()
}

// hears tells streams of the advisories that have come for them, until the link ends.
func (l *link) hears(ended <-chan struct{}) {
	for {
		select {
		case m := <-l.advisories:
			l.mu.Lock()
			for s := range l.listening {
				switch m.Subject {
				case advisories + "UPDATED." + s.name, advisories + "DELETED." + s.name:
					s.edits.Add(1)
				}
			}
			l.mu.Unlock()
		case <-ended:
			return
		}
	}
}

// Close ends the stream's subscriptions. The connection stays.
func (s *Stream) Close() {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.unhear()
	s.out.close()
}

// Name is the stream's name.
func (s *Stream) Name() string { return s.name }

// Domain is the JetStream domain that the stream is in, often empty.
func (s *Stream) Domain() string { return s.domain }

// Created is true if Open made the stream.
func (s *Stream) Created() bool { return s.created }

// Warnings has a sentence for each setting of the stream that is legal and risky.
func (s *Stream) Warnings() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.warnings)
}

// Usual has a sentence for what is risky and as most streams have it: one replica.
// Whoever has read that once need not read it at each start.
func (s *Stream) Usual() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.usual)
}

// Unlike says in which settings the stream, as of Open, differs from those that
// Config.New asks for; empty for a stream that Open made. An existing stream is not
// changed.
func (s *Stream) Unlike() []Unlike { return slices.Clone(s.unlike) }

// Unlike is a setting of a stream that is not as it would be made now.
type Unlike struct {
	Setting string // as nats-server calls it: max_age, max_bytes, num_replicas
	Has     string
	Asked   string
}

// unlike compares a stream with what was asked for. What was not is as it may.
func (n NewStream) unlike(c *jetstream.StreamConfig) (list []Unlike) {
	age := func(d time.Duration) string {
		if d <= 0 {
			return "no limit"
		}
		return d.String()
	}
	size := func(n int64) string {
		if n <= 0 {
			return "no limit"
		}
		return strconv.FormatInt(n, 10)
	}
	if n.MaxAge != 0 && max(n.MaxAge, 0) != c.MaxAge {
		list = append(list, Unlike{"max_age", age(c.MaxAge), age(n.MaxAge)})
	}
	if n.MaxBytes != 0 && n.MaxBytes != c.MaxBytes {
		list = append(list, Unlike{"max_bytes", size(c.MaxBytes), size(n.MaxBytes)})
	}
	if n.Replicas != 0 && n.Replicas != c.Replicas {
		list = append(list, Unlike{"num_replicas", strconv.Itoa(c.Replicas), strconv.Itoa(n.Replicas)})
	}
	return list
}

// Dedicated is true if the stream captures no subject beyond the filter. Only then its
// own last sequence is an expectation.
func (s *Stream) Dedicated() bool { return s.current().dedicated }

// Epoch grows with every reconnect of the connection. What was read in one epoch may have
// been read from a server that was deposed since: read again before the next write.
func (s *Stream) Epoch() uint64 { return s.link.nc.Stats().Reconnects }

// Edited grows whenever the stream's settings may be others than those that Info saw
// last: with each reconnect, and when the server tells that the stream was changed or
// deleted. Take it before Info. A change in the moment of Open may be missed.
func (s *Stream) Edited() uint64 { return s.Epoch() + s.edits.Load() }

// StepDown makes all writes go one by one until the next reconnect. It is for a chunk
// that was refused twice while the stream stood still: a single nats-server that has
// refused an atomic batch half-way compares fast ingest with a sequence that is too high,
// and nothing else (nats-server, stream.go: the sequence counter is put back in clusters
// only).
func (s *Stream) StepDown() { s.stepped.Store(s.Epoch() + 1) }

func (s *Stream) steppedDown() bool { return s.stepped.Load() == s.Epoch()+1 }

func (s *Stream) current() settings {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settings
}

// change applies f to the settings of the stream.
func (s *Stream) change(f func(*settings)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.settings)
}

// Info reads the stream's state, and verifies its settings again: a [*ConfigError] says
// that they do not carry the promise any more. It is for checking and for people; a
// position never comes from here (design, section 2).
func (s *Stream) Info(ctx context.Context) (Info, error) {
	info, err := s.readInfo(ctx, s.name)
	if err != nil {
		return Info{}, err
	}
	if err := s.check(info); err != nil {
		return Info{}, err
	}
	s.warn(&info.Config)
	return info.info(), nil
}

func (s *Stream) readInfo(ctx context.Context, name string) (*streamInfo, error) {
	var info streamInfo
	err := s.link.read(ctx, "stream "+name+": reading its settings", s.api+"STREAM.INFO."+name, nil, apiTimeout, &info)
	return &info, explain(err)
}

// explain turns answers that no waiting heals into a ConfigError.
func explain(err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return err
	}
	switch e.Code {
	case 10039, 10076, 10120:
		return &ConfigError{Setting: "JetStream", Reason: e.Error()}
	}
	return err
}

// find returns the stream by its name, else by its subject, else a new one.
//
// Without a configured name the usual name is tried first, since reading one stream's
// settings is all that a narrow user may do.
func (s *Stream) find(ctx context.Context) (*streamInfo, error) {
	name := cmp.Or(s.cfg.Name, DefaultName(s.cfg.Realm))
	if err := validName(name); err != nil {
		return nil, err
	}
	info, err := s.readInfo(ctx, name)
	missing := false
	if err != nil {
		if e, ok := errors.AsType[*Error](err); !ok || e.Kind != Gone {
			return nil, err
		}
		missing = true
	}
	if !missing && (s.cfg.Name != "" || covered(info.Config.Subjects, s.cfg.Filter)) {
		return info, nil
	}
	if s.cfg.Name == "" {
		others, err := s.capturing(ctx)
		switch e, _ := errors.AsType[*Error](err); {
		case e != nil && e.Kind == Forbidden:
			// Without the right to look, the usual name is all there is to go by.
		case err != nil:
			return nil, err
		case len(others) == 1 && (missing || others[0] != name):
			return s.readInfo(ctx, others[0])
		case len(others) > 1:
			return nil, &ConfigError{Stream: others[0], Setting: "subjects",
				Reason: fmt.Sprintf("it captures a part of %s, and so do %s; one stream has to capture all of it: "+
					"change their subjects (nats stream edit)",
					s.cfg.Filter, strings.Join(others[1:], ", "))}
		}
	}
	if !missing {
		return info, nil // of the usual name, with other subjects: check says what is wrong with it
	}
	if ask := s.cfg.BeforeCreate; ask != nil {
		if err := ask(ctx); err != nil {
			return nil, fmt.Errorf("%w (%s): %w", ErrNotMade, name, err)
		}
	}
	return s.create(ctx, name)
}

// capturing lists the streams whose subjects overlap with the filter.
func (s *Stream) capturing(ctx context.Context) ([]string, error) {
	var names struct {
		apiReply
		Streams []string `json:"streams"`
	}
	question := map[string]string{"subject": s.cfg.Filter}
	err := s.link.ask(ctx, "looking for the stream that captures "+s.cfg.Filter, s.api+"STREAM.NAMES", question,
		apiTimeout, &names)
	return names.Streams, explain(err)
}

// create makes the stream with the defaults of the design and what the user chose.
// Somebody else who makes it at the same time is fine: then theirs is taken.
func (s *Stream) create(ctx context.Context, name string) (*streamInfo, error) {
	_, level := s.link.nc.ConnectedServerJetStream()
	n := s.cfg.New
	config := jetstream.StreamConfig{
		Name:               name,
		Description:        "Zulip events of " + s.cfg.Realm,
		Subjects:           []string{s.cfg.Filter},
		Retention:          jetstream.LimitsPolicy,
		Storage:            jetstream.FileStorage,
		Replicas:           max(n.Replicas, 1),
		MaxConsumers:       -1,
		MaxMsgs:            -1,
		MaxBytes:           cmp.Or(n.MaxBytes, -1),
		MaxAge:             cmp.Or(n.MaxAge, max(defaultMaxAge, s.cfg.QueueLife)),
		MaxMsgsPerSubject:  -1,
		MaxMsgSize:         -1,
		Discard:            jetstream.DiscardOld,
		Compression:        jetstream.S2Compression,
		AllowDirect:        true,
		AllowMsgTTL:        level >= 1,
		AllowAtomicPublish: level >= levelAtomic,
		AllowBatchPublish:  level >= levelFast,
		Metadata:           map[string]string{"zulip-bridge": cmp.Or(s.cfg.Version, "unknown")},
	}
	config.Duplicates = defaultDuplicates
	if config.MaxAge = max(config.MaxAge, 0); config.MaxAge > 0 {
		config.Duplicates = min(defaultDuplicates, config.MaxAge)
	}
	if n.Memory {
		config.Storage, config.Compression = jetstream.MemoryStorage, jetstream.NoCompression
	}
	err := s.link.ask(ctx, "stream "+name+": creating it", s.api+"STREAM.CREATE."+name, &config, apiTimeout,
		&apiReply{})
	if err == nil {
		// The answer to this lacks the domain, so it is read like any other stream.
		s.created = true
		return s.readInfo(ctx, name)
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return nil, err
	}
	bad := func(setting, advice string) error {
		return &ConfigError{Stream: name, Setting: setting,
			Reason: strings.TrimPrefix(e.Error(), "stream "+name+": ") + advice}
	}
	switch e.Code {
	case 10058: // name in use: somebody was faster
		return s.readInfo(ctx, name)
	case 10065:
		return nil, bad("subjects", fmt.Sprintf("; another stream of this account captures a part of %s: name it, or "+
			"change its subjects",
			s.cfg.Filter))
	case 10005: // no peers, or one of them is away: it may come back
		return nil, errorf(Unavailable,
			"%w; it may be that a server is down: lower the number of replicas (--replicas), add servers, or wait", e)
	case 10074:
		return nil, bad("num_replicas", "; lower the number of replicas (--replicas), or add servers")
	case 10047, 10028, 10113, 10122:
		return nil, bad("max_bytes", "; choose a max_bytes that fits (--max-bytes), or raise the limit")
	case 10027:
		return nil, bad("max streams", "")
	case 10052, 10025, 10053:
		return nil, bad("settings", "; make the stream by hand (nats stream add) and give its name")
	}
	if e.Kind == Forbidden {
		return nil, errorf(Forbidden, "stream %s does not exist and cannot be made: %w; or make it yourself: nats "+
			"stream add %s --subjects '%s'",
			name, e, name, s.cfg.Filter)
	}
	return nil, explain(err)
}

// validName refuses names that would be another subject when put in one (nats-server,
// jetstream_api.go).
func validName(name string) error {
	if name == "" || len(name) > 255 || strings.ContainsAny(name, " \t\r\n.*>/\\") {
		return &ConfigError{Setting: "stream name", Reason: fmt.Sprintf("%q cannot be the name of a stream; "+
			"it may have no dot, blank, star, slash or >", name)}
	}
	return nil
}

// check verifies what the stream says about itself and takes over what the publish paths
// need to know.
func (s *Stream) check(info *streamInfo) error {
	c := &info.Config
	if err := verify(c, s.cfg.Filter); err != nil {
		return err
	}
	now := settings{
		dedicated:   dedicated(c.Subjects, s.cfg.Filter),
		obeysFilter: obeysFilter(version(c)),
		file:        c.Storage != jetstream.MemoryStorage,
		atomic:      c.AllowAtomicPublish && level(c) >= levelAtomic,
		batchMax:    batchMax,
		maxMsgSize:  int64(c.MaxMsgSize),
	}
	if !now.dedicated && !now.obeysFilter {
		return &ConfigError{Stream: c.Name, Setting: "server version",
			Reason: fmt.Sprintf("it captures more than %s (its subjects are %s), and %s leads it: that does not "+
				"reliably compare a write with the newest message of one realm, so two instances would store events "+
				"twice; update the server to %s or newer, or give %s a stream of its own (nats stream add %s "+
				"--subjects '%s', after taking %s out of this "+
				"one)", s.cfg.Filter, strings.Join(c.Subjects, ", "), oldServer(c, s.link.nc), Oldest,
				s.cfg.Filter,
				DefaultName(s.cfg.Realm), s.cfg.Filter, s.cfg.Filter)}
	}
	now.fast = c.AllowBatchPublish && level(c) >= levelFast && now.dedicated
	if now.maxMsgSize == 0 {
		now.maxMsgSize = -1
	}
	bad := func(reason string) error {
		return &ConfigError{Stream: c.Name, Setting: "publish path",
			Reason: fmt.Sprintf("path %s is asked for: %s", s.cfg.Path, reason)}
	}
	switch {
	case s.cfg.Path == PathFast && !now.dedicated:
		return bad("it needs a stream that captures nothing but " + s.cfg.Filter)
	case s.cfg.Path == PathFast && !now.fast:
		return bad("it needs allow_batched and nats-server 2.14 or newer")
	case s.cfg.Path == PathAtomic && !now.atomic:
		return bad("it needs allow_atomic and nats-server 2.12 or newer")
	}
	s.change(func(old *settings) {
		if old.batchMax > 0 {
			now.batchMax = old.batchMax // a server's own limit, learnt from a refusal
		}
		*old = now
	})
	return nil
}

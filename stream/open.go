package stream

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// Path is a way to publish two or more messages. A single message always goes alone.
type Path string

const (
	// PathAuto takes the fastest path that the stream and the server offer: fast ingest, else atomic batches, else sync; atomic
	// batches before fast ingest where the round trip is longer than 5 ms, since they need one and fast ingest two.
	PathAuto Path = "auto"
	// PathFast is fast ingest (NATS ADR-50): messages are stored as they come, each with its own expectation, until one is refused.
	PathFast Path = "fast"
	// PathAtomic is the atomic batch (NATS ADR-50): all or nothing, at most 1,000 messages each.
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
	// Name is the stream's name. Empty: the stream that captures Filter, whatever its name, else a new one, ZULIP_<realm>.
	Name string
	// Domain is the JetStream domain of the stream, for a connection by way of a leaf node. Empty is the connection's own.
	Domain string
	// QueueLife is how long the other side keeps what we have not stored yet. A stream that forgets sooner gets a warning.
	QueueLife time.Duration
	// Path forces a publish path; empty is PathAuto. A path that the stream does not offer is a ConfigError.
	Path Path
	// AckTimeout is how long a write may go without any sign of the server; 0 is 2 s.
	AckTimeout time.Duration
	// Bucket is the object store for large messages; empty is zulip_<realm>.
	Bucket string
	// Version is noted in the metadata of a stream that we make.
	Version string
	// New is for a stream that we make. An existing stream is never changed.
	New NewStream
}

// NewStream has the settings of a new stream that a user may choose. The zero value is a file stream with one replica that keeps
// seven days.
type NewStream struct {
	Memory   bool          // store in memory instead of files
	Replicas int           // 0 is 1; 3 survives the loss of a server and of its disk
	MaxAge   time.Duration // 0 is 7 days, or QueueLife if that is longer
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

// Stream is one JetStream stream, verified when it was opened. Its methods may be called at the same time; two Appends wait for each
// other.
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
	warnings []string

	mu       sync.Mutex // guards what follows
	settings settings

	stepped atomic.Uint64 // the epoch in which only sync goes, plus one

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
	// Replicas is on how many servers it is kept.
	Replicas int
	// Created tells a stream from another of the same name that was made after it was deleted.
	Created time.Time
	// Leader is the server that leads the stream; empty on a single server.
	Leader string
}

// streamInfo is JetStream's answer to STREAM.INFO and STREAM.CREATE, as far as we need it. It is read from the JSON, and not by the
// types of nats.go, so that no field depends on the age of a library.
type streamInfo struct {
	apiReply
	Config  streamConfig `json:"config"`
	Created time.Time    `json:"created"`
	Domain  string       `json:"domain"`
	State   struct {
		Messages  uint64    `json:"messages"`
		Bytes     uint64    `json:"bytes"`
		FirstSeq  uint64    `json:"first_seq"`
		FirstTime time.Time `json:"first_ts"`
		LastSeq   uint64    `json:"last_seq"`
	} `json:"state"`
	Cluster *struct {
		Leader string `json:"leader"`
	} `json:"cluster"`
}

func (i *streamInfo) info() Info {
	info := Info{
		FirstSeq: i.State.FirstSeq, LastSeq: i.State.LastSeq, Messages: i.State.Messages, Bytes: i.State.Bytes, MaxAge: i.Config.MaxAge,
		Replicas: i.Config.Replicas,
		Created:  i.Created,
	}
	if i.State.Messages > 0 {
		info.FirstTime = i.State.FirstTime
	}
	if i.Cluster != nil {
		info.Leader = i.Cluster.Leader
	}
	return info
}

// streamConfig has the fields of a stream's configuration that matter to us (nats-server, stream.go, StreamConfig).
type streamConfig struct {
	Name             string            `json:"name"`
	Description      string            `json:"description,omitempty"`
	Subjects         []string          `json:"subjects,omitempty"`
	Retention        string            `json:"retention"`
	Storage          string            `json:"storage"`
	Replicas         int               `json:"num_replicas"`
	MaxConsumers     int               `json:"max_consumers"`
	MaxMsgs          int64             `json:"max_msgs"`
	MaxBytes         int64             `json:"max_bytes"`
	MaxAge           time.Duration     `json:"max_age"`
	MaxMsgsPer       int64             `json:"max_msgs_per_subject"`
	MaxMsgSize       int64             `json:"max_msg_size"`
	Discard          string            `json:"discard"`
	Duplicates       time.Duration     `json:"duplicate_window,omitempty"`
	Compression      string            `json:"compression,omitempty"`
	AllowDirect      bool              `json:"allow_direct"`
	AllowRollup      bool              `json:"allow_rollup_hdrs"`
	AllowTTL         bool              `json:"allow_msg_ttl,omitempty"`
	AllowAtomic      bool              `json:"allow_atomic,omitempty"`
	AllowBatched     bool              `json:"allow_batched,omitempty"`
	NoAck            bool              `json:"no_ack,omitempty"`
	Sealed           bool              `json:"sealed,omitempty"`
	Counter          bool              `json:"allow_msg_counter,omitempty"`
	PersistMode      string            `json:"persist_mode,omitempty"`
	Mirror           json.RawMessage   `json:"mirror,omitempty"`
	Sources          []json.RawMessage `json:"sources,omitempty"`
	SubjectTransform json.RawMessage   `json:"subject_transform,omitempty"`
	Metadata         map[string]string `json:"metadata,omitempty"`
}

// level is the API level of the server that leads the stream; 0 for servers before 2.11.
func (c *streamConfig) level() int {
	level, _ := strconv.Atoi(c.Metadata["_nats.level"]) // absent or nonsense: as old as can be
	return level
}

// settings is what the publish paths need to know of the stream's configuration.
type settings struct {
	dedicated  bool
	file       bool
	fast       bool
	atomic     bool
	batchMax   int   // messages in an atomic batch
	maxMsgSize int64 // -1 is no limit
}

// Open finds the stream, or makes it if there is none, and verifies it. An existing stream is never changed.
//
// Settings that break the promise come back as a [*ConfigError], which no waiting heals. All else is an [*Error]: Unavailable while
// NATS, JetStream or the stream's leader is not ready, which the caller repeats.
func Open(ctx context.Context, nc *nats.Conn, cfg Config) (*Stream, error) {
	cfg.Path = cmp.Or(cfg.Path, PathAuto)
	cfg.AckTimeout = cmp.Or(cfg.AckTimeout, defaultAckTimeout)
	cfg.Bucket = cmp.Or(cfg.Bucket, "zulip_"+cfg.Realm)
	switch cfg.Path {
	case PathAuto, PathFast, PathAtomic, PathSync:
	default:
		return nil, &ConfigError{Setting: "publish path", Reason: fmt.Sprintf("%q is none of auto, fast, atomic, sync", cfg.Path)}
	}
	stem, open := strings.CutSuffix(cfg.Filter, ">")
	if !open || !strings.HasSuffix(stem, ".") || strings.ContainsAny(stem, "*> \t\r\n") {
		return nil, &ConfigError{Setting: "filter", Reason: fmt.Sprintf("%q is not of the form zulip.realm.>", cfg.Filter)}
	}
	s := &Stream{link: linkOf(nc), cfg: cfg, api: "$JS.API.", stem: stem}
	if cfg.Domain != "" {
		s.api = "$JS." + cfg.Domain + ".API."
	}
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
		return nil, &ConfigError{Stream: s.name, Setting: "domain", Reason: fmt.Sprintf("it is in JetStream domain %q, not in %q",
			info.Domain, cfg.Domain)}
	}
	if err := s.check(info); err != nil {
		return nil, err
	}
	s.warnings = warnings(&info.Config, cfg.QueueLife)
	if err := s.out.open(ctx, s); err != nil {
		return nil, err
	}
	return s, nil
}

// Close ends the stream's subscription for answers. The connection stays.
func (s *Stream) Close() {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.out.close()
}

// Name is the stream's name.
func (s *Stream) Name() string { return s.name }

// Domain is the JetStream domain that the stream is in, often empty.
func (s *Stream) Domain() string { return s.domain }

// Created is true if Open made the stream.
func (s *Stream) Created() bool { return s.created }

// Warnings has a sentence for each setting of the stream that is legal and risky, as of Open.
func (s *Stream) Warnings() []string { return slices.Clone(s.warnings) }

// Dedicated is true if the stream captures no subject beyond the filter. Only then its own last sequence is an expectation.
func (s *Stream) Dedicated() bool { return s.current().dedicated }

// Epoch grows with every reconnect of the connection. What was read in one epoch may have been read from a server that was deposed
// since: read again before the next write.
func (s *Stream) Epoch() uint64 { return s.link.nc.Stats().Reconnects }

// StepDown makes all writes go one by one until the next reconnect. It is for a chunk that was refused twice while the stream stood
// still: a single nats-server that has refused an atomic batch half-way compares fast ingest with a sequence that is too high, and
// nothing else (nats-server, stream.go: the sequence counter is put back in clusters only).
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

// Info reads the stream's state, and verifies its settings again: a [*ConfigError] says that they do not carry the promise any more.
// It is for checking and for people; a position never comes from here (design, section 2).
func (s *Stream) Info(ctx context.Context) (Info, error) {
	info, err := s.readInfo(ctx, s.name)
	if err != nil {
		return Info{}, err
	}
	if err := s.check(info); err != nil {
		return Info{}, err
	}
	return info.info(), nil
}

func (s *Stream) readInfo(ctx context.Context, name string) (*streamInfo, error) {
	var info streamInfo
	err := s.link.ask(ctx, "stream "+name+": reading its settings", s.api+"STREAM.INFO."+name, nil, apiTimeout, &info)
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
// Without a configured name the usual name is tried first, since reading one stream's settings is all that a narrow user may do.
func (s *Stream) find(ctx context.Context) (*streamInfo, error) {
	name := cmp.Or(s.cfg.Name, "ZULIP_"+s.cfg.Realm)
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
			return nil, &ConfigError{Stream: others[0], Setting: "subjects", Reason: fmt.Sprintf("it captures a part of %s, and so do %s; "+
				"one stream has to capture all of it: change their subjects (nats stream edit)",
				s.cfg.Filter, strings.Join(others[1:], ", "))}
		}
	}
	if !missing {
		return info, nil // of the usual name, with other subjects: check says what is wrong with it
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
	err := s.link.ask(ctx, "looking for the stream that captures "+s.cfg.Filter, s.api+"STREAM.NAMES", question, apiTimeout, &names)
	return names.Streams, explain(err)
}

// create makes the stream with the defaults of the design and what the user chose. Somebody else who makes it at the same time is
// fine: then theirs is taken.
func (s *Stream) create(ctx context.Context, name string) (*streamInfo, error) {
	_, level := s.link.nc.ConnectedServerJetStream()
	n := s.cfg.New
	config := streamConfig{
		Name:         name,
		Description:  "Zulip events of " + s.cfg.Realm,
		Subjects:     []string{s.cfg.Filter},
		Retention:    "limits",
		Storage:      "file",
		Replicas:     max(n.Replicas, 1),
		MaxConsumers: -1,
		MaxMsgs:      -1,
		MaxBytes:     cmp.Or(n.MaxBytes, -1),
		MaxAge:       cmp.Or(n.MaxAge, max(defaultMaxAge, s.cfg.QueueLife)),
		MaxMsgsPer:   -1,
		MaxMsgSize:   -1,
		Discard:      "old",
		Compression:  "s2",
		AllowDirect:  true,
		AllowTTL:     level >= 1,
		AllowAtomic:  level >= levelAtomic,
		AllowBatched: level >= levelFast,
		Metadata:     map[string]string{"zulip-bridge": cmp.Or(s.cfg.Version, "unknown")},
	}
	config.Duplicates = min(defaultDuplicates, config.MaxAge)
	if n.Memory {
		config.Storage, config.Compression = "memory", "none"
	}
	err := s.link.ask(ctx, "stream "+name+": creating it", s.api+"STREAM.CREATE."+name, &config, apiTimeout, &apiReply{})
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
		return &ConfigError{Stream: name, Setting: setting, Reason: strings.TrimPrefix(e.Error(), "stream "+name+": ") + advice}
	}
	switch e.Code {
	case 10058: // name in use: somebody was faster
		return s.readInfo(ctx, name)
	case 10065:
		return nil, bad("subjects", fmt.Sprintf("; another stream of this account captures a part of %s: name it, or change its subjects",
			s.cfg.Filter))
	case 10005: // no peers, or one of them is away: it may come back
		return nil, errorf(Unavailable, "%w; it may be that a server is down: lower the number of replicas, add servers, or wait", e)
	case 10074:
		return nil, bad("num_replicas", "; lower the number of replicas, or add servers")
	case 10047, 10028, 10113, 10122:
		return nil, bad("max_bytes", "; choose a max_bytes that fits, or raise the limit")
	case 10027:
		return nil, bad("max streams", "")
	case 10052, 10025, 10053:
		return nil, bad("settings", "; make the stream by hand (nats stream add) and give its name")
	}
	if e.Kind == Forbidden {
		return nil, errorf(Forbidden, "stream %s does not exist and cannot be made: %w; or make it yourself: nats stream add %s --subjects '%s'",
			name, e, name, s.cfg.Filter)
	}
	return nil, explain(err)
}

// validName refuses names that would be another subject when put in one (nats-server, jetstream_api.go).
func validName(name string) error {
	if name == "" || len(name) > 255 || strings.ContainsAny(name, " \t\r\n.*>/\\") {
		return &ConfigError{Setting: "stream name", Reason: fmt.Sprintf("%q cannot be the name of a stream; "+
			"it may have no dot, blank, star, slash or >", name)}
	}
	return nil
}

// check verifies what the stream says about itself and takes over what the publish paths need to know.
func (s *Stream) check(info *streamInfo) error {
	c := &info.Config
	if err := verify(c, s.cfg.Filter); err != nil {
		return err
	}
	now := settings{
		dedicated:  dedicated(c.Subjects, s.cfg.Filter),
		file:       c.Storage != "memory",
		atomic:     c.AllowAtomic && c.level() >= levelAtomic,
		batchMax:   batchMax,
		maxMsgSize: c.MaxMsgSize,
	}
	now.fast = c.AllowBatched && c.level() >= levelFast && now.dedicated
	if now.maxMsgSize == 0 {
		now.maxMsgSize = -1
	}
	bad := func(reason string) error {
		return &ConfigError{Stream: c.Name, Setting: "publish path", Reason: fmt.Sprintf("path %s is asked for: %s", s.cfg.Path, reason)}
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

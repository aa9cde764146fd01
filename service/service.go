// Package service lets the bridges on a bus be found, by whoever is on the same bus:
// without an address, a port or a list of machines.
//
// Each process that follows a realm registers itself as an instance of the NATS micro
// service zulip-nats (nats.go, micro; the protocol is that of ADR-32 of
// nats-io/nats-architecture-and-design). So `nats micro ls` lists it, and it answers PING,
// INFO and STATS on $SRV. It has the endpoint [Subject]: each instance answers there with
// an [Answer], which is the JSON of /status and the instance's name. There is no queue
// group: whoever asks hears of all. [Ask] asks, and collects for a while. Instances that
// store the state of their organization have another one, [StateSubject], where [AskState]
// asks for a new one.
//
// What this tells is who answers. An instance that is cut off, paused or gone is not
// there, and nobody can tell it from one that never was.
//
// Answers go to inboxes only, and a hundred a second at most: who asks is nobody that the
// bridge has to trust. It hangs on the connection that the bridge works with, and must not
// be in its way. Where the user has no right to subscribe or to answer, that is said once,
// and the bridge works on.
package service

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/nats-io/nuid"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"zulip-nats/bridge"
	"zulip-nats/logevent"
	"zulip-nats/monitor"
	"zulip-nats/stream"
)

const (
	// Name is that of the service.
	Name = "zulip-nats"
	// Subject is where all instances answer how they are. It is below none of the
	// subjects of a realm, which streams store.
	Subject = "zulip-nats.status"
	// StateSubject is where instances that store the state of their organization are asked
	// for a new one.
	StateSubject = "zulip-nats.state"
)

// mostText is how long the text of a reason stays, in bytes, where an answer is too large.
const mostText = 300

// Config says what is told.
type Config struct {
	// Instance is the name of this process, as in the header Bridge-Writer.
	Instance string
	// Version is that of the program. The protocol knows semantic versions only; another
	// one is 0.0.0 there, and stands in the answers as it is.
	Version string
	// Realms gives the status of each realm. It is called for each question, from any
	// goroutine.
	Realms func() []bridge.Status
	// AskState asks a realm for a new state, and says whether one will come. It is called
	// from any goroutine. Nil: this instance stores none, and is not asked.
	AskState func(realm string) bool
	Log      zerolog.Logger
}

// StateQuestion asks for a new state.
type StateQuestion struct {
	Realms []string `json:"realms"` // empty: all
}

// StateAnswer is what an instance says to that.
type StateAnswer struct {
	Instance string   `json:"instance"`
	Asked    []string `json:"asked"` // realms of which a new state will come
}

// subjects are those of the endpoints.
func (c *Config) subjects() []string {
	if c.AskState == nil {
		return []string{Subject}
	}
	return []string{Subject, StateSubject}
}

// Answer is what an instance says of itself.
type Answer struct {
	Instance string `json:"instance"`
	// Brief says that there are so many realms that all of a realm would not fit into a
	// message. Then it has what is needed to say how it is, and of its counters events
	// stored and messages read back; all else is zero, and not known.
	Brief bool `json:"brief,omitempty"`
	monitor.Report
}

// Start registers an instance on a connection, which need not be up: it is there whenever
// the connection is. stop takes it away; so does the end of the connection.
func Start(conn *stream.Conn, cfg Config) (stop func()) {
	unseen := func(reason, remedy string) {
		logevent.StatusUnseen.Info(cfg.Log).Str("reason", reason).
			Msg("`zulip-nats status` and `nats micro` do not see this instance, which does no other harm: " + remedy)
	}
	// Both are said by the server after the fact, and again after each reconnect.
	deaf, noMoreDeaf := conn.Refused(func(action, subject string) bool {
		return action == "subscribe" && (subject == Subject || subject == StateSubject ||
			strings.HasPrefix(subject, micro.APIPrefix+"."))
	})
	dumb, noMoreDumb := conn.Refused(func(action, subject string) bool {
		return action == "publish" && mayAnswer(subject)
	})
	ended := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case subject := <-deaf:
				unseen("NATS refuses to subscribe to "+subject, "give our user the right to subscribe to "+
					micro.APIPrefix+".> and "+strings.Join(cfg.subjects(), " and "))
				deaf = nil
			case subject := <-dumb:
				unseen("NATS refuses to answer on "+subject, "give our user allow_responses")
				dumb = nil
			case <-ended:
				return
			}
		}
	}()
	i, err := register(conn.Conn, &cfg)
	if err != nil && !conn.IsClosed() {
		unseen(err.Error(), "report it as a bug")
	}
	return func() {
		i.stop()
		noMoreDeaf()
		noMoreDumb()
		close(ended)
		<-done
	}
}

// mostAnswers is how many questions an instance answers in a second, of all kinds. People
// and their programs ask some times a minute; what comes beyond is passed over, so that
// nobody keeps the connection busy with our answers. An answer with a thousand realms
// counts as one for each 16 KiB.
const mostAnswers, answerSize = 100, 16 << 10

// instance answers the questions of the protocol. It is not nats.go's own service (of which
// it has the types), since that one answers wherever a question wants it to: see
// mayAnswer.
type instance struct {
	*Config
	nc       *nats.Conn
	identity micro.ServiceIdentity
	started  time.Time
	limit    *rate.Limiter
	subs     []*nats.Subscription

	mu    sync.Mutex
	stats micro.EndpointStats // of the status
	asked micro.EndpointStats // of the state
}

func register(nc *nats.Conn, cfg *Config) (*instance, error) {
	var realms []string
	for _, s := range cfg.Realms() {
		realms = append(realms, s.Realm)
	}
	i := &instance{Config: cfg, nc: nc, started: time.Now().UTC(), limit: rate.NewLimiter(mostAnswers, mostAnswers),
		identity: micro.ServiceIdentity{Name: Name, ID: nuid.Next(), Version: semantic(cfg.Version),
			Metadata: map[string]string{"instance": cfg.Instance, "realms": namesOf(realms)}},
		stats: micro.EndpointStats{Name: "status", Subject: Subject},
		asked: micro.EndpointStats{Name: "state", Subject: StateSubject}}
	var endpoints []micro.EndpointInfo
	for _, subject := range cfg.subjects() {
		endpoints = append(endpoints, micro.EndpointInfo{Name: strings.TrimPrefix(subject, Name+"."), Subject: subject})
	}
	for verb, answer := range map[micro.Verb]func() any{
		micro.PingVerb: func() any { return micro.Ping{ServiceIdentity: i.identity, Type: micro.PingResponseType} },
		micro.InfoVerb: func() any {
			return micro.Info{ServiceIdentity: i.identity, Type: micro.InfoResponseType,
				Description: "puts every event of a Zulip account on JetStream",
				Endpoints:   endpoints}
		},
		micro.StatsVerb: func() any {
			i.mu.Lock()
			defer i.mu.Unlock()
			stats := i.stats
			all := []*micro.EndpointStats{&stats}
			if i.AskState != nil {
				asked := i.asked
				all = append(all, &asked)
			}
			return micro.Stats{ServiceIdentity: i.identity, Type: micro.StatsResponseType, Started: i.started,
				Endpoints: all}
		},
	} {
		for _, to := range [][2]string{{}, {Name}, {Name, i.identity.ID}} {
			subject, err := micro.ControlSubject(verb, to[0], to[1])
			if err != nil {
				return i, err
			}
			if err := i.answers(subject, func([]byte) *nats.Msg { return &nats.Msg{Data: encoded(answer())} }); err != nil {
				return i, err
			}
		}
	}
	if i.AskState != nil {
		if err := i.answers(StateSubject, i.state); err != nil {
			return i, err
		}
	}
	return i, i.answers(Subject, func([]byte) *nats.Msg { return i.status() })
}

// namesOf are the names of realms as they stand in each answer of the protocol; of very
// many it is their number.
func namesOf(realms []string) string {
	if names := strings.Join(realms, ","); len(names) <= mostNames {
		return names
	}
	return fmt.Sprintf("%d realms", len(realms))
}

// mostNames is how long the names of realms may be together, in bytes.
const mostNames = 4 << 10

// state asks for a new state where this instance leads, and says of which realms.
func (i *instance) state(question []byte) *nats.Msg {
	i.mu.Lock()
	i.asked.NumRequests++
	i.mu.Unlock()
	var q StateQuestion
	a := StateAnswer{Instance: i.Instance, Asked: []string{}}
	if len(question) > 0 && json.Unmarshal(question, &q) != nil {
		return &nats.Msg{Data: encoded(a)} // nobody's question
	}
	for _, s := range i.Realms() {
		if s.Leads && (len(q.Realms) == 0 || slices.Contains(q.Realms, s.Realm)) && i.AskState(s.Realm) {
			a.Asked = append(a.Asked, s.Realm)
		}
	}
	return &nats.Msg{Data: encoded(a)}
}

// answers subscribes to questions.
func (i *instance) answers(subject string, answer func(question []byte) *nats.Msg) error {
	cost := 1 // of the next answer; for the subscription's own goroutine
	sub, err := i.nc.Subscribe(subject, func(m *nats.Msg) {
		// How large this answer will be is not known yet; the one before was much the same.
		if !mayAnswer(m.Reply) || !i.limit.AllowN(time.Now(), cost) {
			return
		}
		a := answer(m.Data)
		cost = min(1+len(a.Data)/answerSize, mostAnswers)
		a.Subject = m.Reply
		_ = i.nc.PublishMsg(a) // whoever asked may be gone, and so may the connection
	})
	if err == nil {
		i.subs = append(i.subs, sub)
	}
	return err
}

// mayAnswer says whether an answer may go to a subject. Whoever asks chooses it, and NATS
// does not look whether they could publish there themselves. We could, with the rights of
// a bridge: into the lease ($KV), the stream of the realm, the API of JetStream ($JS). So
// it has to look like an inbox, which begins with _ by convention: _INBOX.…, a prefix of
// somebody's own as _INBOX_ada.…, and the _R_.… of another account.
func mayAnswer(reply string) bool { return strings.HasPrefix(reply, "_") }

// status is the answer with the status of all realms.
func (i *instance) status() *nats.Msg {
	began := time.Now()
	answer := Answer{Instance: i.Instance, Report: monitor.NewReport(i.Version, i.Realms(), began)}
	all := len(answer.Realms)
	m := &nats.Msg{Data: encode(&answer, i.nc.MaxPayload())}
	why := ""
	if some := len(answer.Realms); some < all {
		why = fmt.Sprintf("of its %d realms the status of %d fits into a message (max_payload is %d), those that do not do "+
			"their job first: ask it by HTTP, or raise max_payload", all, some, i.nc.MaxPayload())
		m.Header = nats.Header{micro.ErrorHeader: {why}, micro.ErrorCodeHeader: {"413"}}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.stats.NumRequests++
	i.stats.ProcessingTime += time.Since(began)
	i.stats.AverageProcessingTime = i.stats.ProcessingTime / time.Duration(i.stats.NumRequests)
	if why != "" {
		i.stats.NumErrors++
		i.stats.LastError = "413:" + why
	}
	return m
}

// encoded is the JSON of what has strings, numbers and times only.
func encoded(v any) []byte {
	data, _ := json.Marshal(v)
	return data
}

func (i *instance) stop() {
	for _, sub := range i.subs {
		_ = sub.Unsubscribe() // fails where the connection does
	}
}

// encode gives the JSON of an answer, and leaves out what does not fit into most bytes: the
// ends of long texts, then what [Answer.Brief] says, and in the end realms, so that there
// are fewer of them in the answer. One message has all, since a user with allow_responses
// may send no second one.
func encode(a *Answer, most int64) []byte {
	data := encoded(a)
	fits := func() bool { return int64(len(data)) <= most }
	if fits() {
		return data
	}
	for i := range a.Realms {
		for j := range a.Realms[i].Reasons {
			if says := &a.Realms[i].Reasons[j].Says; len(*says) > mostText {
				*says = strings.ToValidUTF8((*says)[:mostText], "") + "…"
			}
		}
	}
	if data = encoded(a); fits() {
		return data
	}
	a.Brief = true
	for i := range a.Realms {
		r := &a.Realms[i]
		r.Queue, r.LastEventID, r.LastSequence = "", nil, 0
		r.Counters = monitor.CountersReport{Events: r.Counters.Events, Refilled: r.Counters.Refilled}
	}
	// The headers that say what is missing need room, too.
	if data = encoded(a); !fits() {
		most -= headRoom
		slices.SortStableFunc(a.Realms, func(x, y monitor.RealmReport) int { return truth(x.OK) - truth(y.OK) })
	}
	for !fits() && len(a.Realms) > 0 {
		part := int64(len(a.Realms)) * most / int64(len(data)) // of about as many bytes
		a.Realms = a.Realms[:min(max(part, 0), int64(len(a.Realms))-1)]
		data = encoded(a)
	}
	return data
}

// headRoom is more than the headers of an answer have that is not whole.
const headRoom = 512

func truth(is bool) int {
	if is {
		return 1
	}
	return 0
}

// version is a semantic version (semver.org), as far as micro takes it.
var version = regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)` +
	`(-(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?` +
	`(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?$`)

// semantic makes a semantic version of what the program says of itself: v1.2.3, a
// version of the Go command, or (devel).
func semantic(s string) string {
	if s = strings.TrimPrefix(s, "v"); version.MatchString(s) {
		return s
	}
	return "0.0.0"
}

package bridge_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"zulip-nats/bridge"
	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/stream/model"
	"zulip-nats/subjects"
	"zulip-nats/zulipsim"
)

// The checker compares what the stream holds with what Zulip had put in the queues. It
// excuses nothing but what Zulip did, and what was done to the stream and to the clocks.

// key names one event of one queue.
type key struct {
	queue string
	id    int64
}

// checkAck is called for each event that Zulip is about to forget: it must have been
// stored.
func (w *world) checkAck(queue string, id int64, raw []byte) {
	w.acks.Lock() // not mu: the stream asks for that with its own lock held
	defer w.acks.Unlock()
	for _, m := range w.jet.Ever(w.seen) {
		w.seen++
		w.stored[first(m, events.HeaderQueueID)+" "+first(m, events.HeaderEventID)] = true
		w.stored[first(m, events.HeaderQueueID)+" "+rejectedEvent(m)] = true
		for id := range excludedEvents(m) {
			w.stored[first(m, events.HeaderQueueID)+" left out "+strconv.FormatInt(id, 10)] = true
		}
	}
	if w.stored[queue+" left out "+strconv.FormatInt(id, 10)] && json.Valid(raw) { // what is no JSON has no id to be left out by
		return
	}
	if w.stored[queue+" "+strconv.FormatInt(id, 10)] || w.stored[queue+" "+string(raw)] ||
		w.stored[queue+" "+withheld(raw)] {
		return
	}
	w.t.Errorf("event %d of queue %s was acknowledged and is not stored: %.200s", id, queue, raw)
}

// dump logs what the stream holds, for the replay of a seed that failed.
func (w *world) dump() {
	at, fates := w.jet.When(), w.jet.Fates()
	for n, m := range w.jet.Ever(0) {
		e := w.log.Info().Uint64("seq", m.Seq).Time("at", at[n]).Str("subject", m.Subject)
		for name, header := range map[string]string{"writer": events.HeaderWriter, "queue": events.HeaderQueueID,
			"event":    events.HeaderEventID,
			"position": events.HeaderPosition, "message_id": events.HeaderMessageID, "record": events.HeaderRecord,
			"origin": events.HeaderOrigin} {
			if v := first(m, header); v != "" {
				e = e.Str(name, v)
			}
		}
		if first(m, events.HeaderRecord) != "" {
			e = e.RawJSON("body", m.Data)
		}
		e.Msg("stored: " + [...]string{"lost", "held", "taken", "removed", "erased"}[fates[n]])
	}
	for _, q := range w.zulip.Queues() {
		w.log.Info().Str("id", q.ID).Time("created", q.Created).Str("dead", q.Dead).Time("died", q.Died).
			Int("events", len(q.Events)).Int64("pruned", q.NewestPruned).
			Bool("waiting", q.Waiting).Msg("queue")
	}
	requests := w.zulip.Requests()
	for _, r := range requests[max(0, len(requests)-5):] {
		w.log.Info().Time("at", r.Time).Str("path", r.Path).Int("status", r.Status).Interface("params", r.Params).
			Msg("one of the last requests")
	}
}

// rejectedEvent is the event that a bridge.rejected record holds; if it withholds it, its
// digest.
func rejectedEvent(m stream.Stored) string {
	var body struct {
		Event, SHA256 string
		Size          int
	}
	if first(m, events.HeaderRecord) != "rejected" || json.Unmarshal(m.Data, &body) != nil {
		return ""
	}
	if body.Event == "" && body.Size > 0 {
		return "withheld " + body.SHA256
	}
	return body.Event
}

func withheld(raw []byte) string {
	sum := sha256.Sum256(raw)
	return "withheld " + hex.EncodeToString(sum[:])
}

// excludedEvents are the ids that a bridge.excluded record covers: no other event of the
// queue stands between them.
func excludedEvents(m stream.Stored) func(func(int64) bool) {
	return func(yield func(int64) bool) {
		var body struct {
			Above int64 `json:"above_event_id"`
			UpTo  int64 `json:"up_to_event_id"`
		}
		if first(m, events.HeaderRecord) != "excluded" || json.Unmarshal(m.Data, &body) != nil {
			return
		}
		for id := body.Above + 1; id <= body.UpTo; id++ {
			if !yield(id) {
				return
			}
		}
	}
}

// mayBeExcluded says whether an event may be left out of the stream, by what instances
// were started with; read off its bytes with encoding/json.
func (c *whole) mayBeExcluded(e *zulipsim.QueuedEvent) bool {
	var body struct {
		Type    string `json:"type"`
		Kind    string `json:"message_type"`
		Channel int64  `json:"stream_id"`
		Message struct {
			Kind string `json:"type"`
		} `json:"message"`
	}
	_ = json.Unmarshal(e.Raw, &body)
	if body.Type == "heartbeat" {
		return false
	}
	if slices.Contains(c.told.excludedTypes, body.Type) {
		return true
	}
	if !c.told.noDirect {
		return false
	}
	switch body.Type {
	case "message":
		return body.Message.Kind != "stream"
	case "user_status", "realm", "restart", "realm_user", "subscription", "stream":
		return false
	}
	return body.Channel == 0 // what is not known of a reaction is left out
}

// private: while no instance ever wanted direct messages, nothing of them is anywhere.
func (c *whole) private() {
	if !c.told.noDirect || c.told.wantedDirect {
		return
	}
	for n := range c.all {
		m := &c.all[n]
		if bytes.Contains(m.Data, []byte("secret")) {
			c.t.Errorf("message %d on %s has something of a direct message: %.300s", m.Seq, m.Subject, m.Data)
		}
	}
	for name, data := range c.jet.Objects() {
		if bytes.Contains(data, []byte("secret")) {
			c.t.Errorf("object %s has something of a direct message", name)
		}
	}
}

// channelsEver are those in which each message was, ever. What Zulip told of messages is
// read off its queues with encoding/json.
func (c *whole) channelsEver() map[int64]map[int64]bool {
	channels := map[int64]map[int64]bool{}
	was := func(id, channel int64) {
		if channels[id] == nil {
			channels[id] = map[int64]bool{}
		}
		channels[id][channel] = true
	}
	for _, m := range c.zulip.Messages() {
		was(m.ID, m.ChannelID)
	}
	for i := range c.queues {
		for _, e := range c.queues[i].Events {
			e := eventSaid(e.Raw)
			if e.Type == "message" {
				was(e.Message.ID, e.Message.Channel)
			}
			if e.Type == "update_message" && e.Channel > 0 {
				for _, id := range e.IDs {
					was(id, e.Channel)
					if e.NewChannel > 0 {
						was(id, e.NewChannel)
					}
				}
			}
		}
	}
	for n := range c.all { // those of history: a move may be lost in a gap
		if e := eventSaid(c.all[n].Data); e.Type == "message" {
			was(e.Message.ID, e.Message.Channel)
		}
	}
	return channels
}

// placed: each event is on the subject that its layout has for it. A reaction may be where
// its message is, where it was, or nowhere.
func (c *whole) placed() {
	var channels map[int64]map[int64]bool
	if c.realm.Layout() != subjects.ByType {
		channels = c.channelsEver()
	}
	for n := range c.all {
		m := &c.all[n]
		place, ours := strings.CutPrefix(m.Subject, "zulip."+simRealm+"."+first(m.Stored, events.HeaderEventType))
		switch {
		case m.record != "" || m.queue == "":
			continue
		case c.realm.Layout() == subjects.ByType:
			if !ours || place != "" {
				c.t.Errorf("message %d is on %s", m.Seq, m.Subject)
			}
			continue
		}
		data := m.Data
		if name := first(m.Stored, events.HeaderObject); name != "" {
			data = c.jet.Objects()[name]
		}
		e := eventSaid(data)
		want := map[string]bool{}
		channel := func(id int64) {
			if id == 0 {
				want[".direct"] = true
			} else {
				want[fmt.Sprint(".channel.", id)] = true
			}
		}
		switch {
		case len(data) == 0: // what it was is erased
			continue
		case e.Type == "message":
			channel(e.Message.Channel)
		case e.Type == "drafts" || e.Type == "quite_new" || e.Kind == "private":
			want[".direct"] = true
		case e.Channel > 0:
			channel(e.Channel)
		case e.Type == "reaction" || e.Type == "update_message_flags" || e.Type == "submessage" || e.Type == "update_message" ||
			e.Type == "delete_message":
			for _, id := range append(e.IDs, e.Flagged...) {
				for id := range channels[id] {
					channel(id)
				}
			}
			if want[".none"] = e.Type == "reaction" || e.Type == "update_message_flags"; !want[".none"] {
				want[".direct"] = true
			}
		default:
			want[".none"] = true
		}
		if !ours || !want[place] {
			c.t.Errorf("message %d is on %s, and not on one of %v: %.300s", m.Seq, m.Subject, want, data)
		}
		drawn.count("by place" + strings.TrimRight(place, ".0123456789"))
		if e.Channel == 0 && e.Type == "reaction" && strings.HasPrefix(place, ".channel") {
			drawn.count("by place, looked up")
		}
	}
}

// saidOfAnEvent is what an event says of where it is.
type saidOfAnEvent struct {
	Type       string
	Kind       string  `json:"message_type"`
	Channel    int64   `json:"stream_id"`
	NewChannel int64   `json:"new_stream_id"`
	ID         int64   `json:"message_id"`
	IDs        []int64 `json:"message_ids"`
	Flagged    []int64 `json:"messages"`
	Message    struct {
		ID      int64
		Channel int64 `json:"stream_id"`
	}
}

func eventSaid(raw []byte) (e saidOfAnEvent) {
	_ = json.Unmarshal(raw, &e) // what is no JSON is rejected
	e.IDs = append(e.IDs, e.ID)
	return e
}

func first(m stream.Stored, key string) string {
	if v := m.Header[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// written is a message that was stored once.
type written struct {
	stream.Stored
	at     time.Time // by everybody's clock
	fate   model.Fate
	record string // what kind of record it is, "" if it is none
	queue  string
	id     int64 // of the message that it holds, or says that the stream holds; 0 if none
}

// stands says whether it is there, or would be but for the stream's limits, or because its
// message was deleted.
func (m *written) stands() bool {
	return m.fate == model.Held || m.fate == model.Taken || m.fate == model.Erased
}

// queueSaid and gapSaid are what records say, as far as the checker needs it.
type queueSaid struct {
	Why      string `json:"why"`
	Assumed  bool   `json:"assumed"`
	Previous string `json:"previous_queue_id"`
	Newest   struct {
		Own, Public int64
	} `json:"newest_message_ids"`
}

type gapSaid struct {
	Cause       string `json:"cause"`
	GivenUp     string `json:"given_up_queue_id"`
	NotRefilled *struct {
		Reason    string  `json:"reason"`
		Above     int64   `json:"above_message_id"`
		UpTo      int64   `json:"up_to_message_id"`
		TooOld    int     `json:"older_than_max_age"`
		OlderThan string  `json:"max_age"`
		TooLarge  []int64 `json:"too_large_message_ids"`
	} `json:"not_refilled"`
	// Messages that the stream's limits had taken, so that nobody knows which were there.
	NotCompared *struct {
		Above int64 `json:"above"`
		UpTo  int64 `json:"up_to"`
	} `json:"not_compared_message_ids"`
	// The events that the stream had lost from its own end.
	Missing *struct {
		Above int64 `json:"above"`
		UpTo  int64 `json:"up_to"`
	} `json:"missing_event_ids"`
	Queue string `json:"queue_id"`
	Old   string `json:"old_queue_id"`
	// By the bridge's clock, which is that of the simulation.
	Closed time.Time `json:"closed"`
}

func said[T any](w *world, m *written) (body T) {
	if err := json.Unmarshal(m.Data, &body); err != nil {
		w.t.Errorf("a record on %s is no JSON: %v", m.Subject, err)
	}
	return body
}

// whole is all that a check looks at.
type whole struct {
	*world
	all    []written
	queues []zulipsim.QueueInfo
	tails  int // how often the limits took our newest message

	recorded map[string]bool     // queues whose record stands
	next     map[string]*written // the record of the queue that a queue was changed over to
	gaps     map[string][]*written
	alive    int
	deserted bool // no instance runs in the end: its account was replaced before it was let in
}

// lost is how often the stream lost what says where we are: then the bridge may know of a
// queue no more.
func (c *whole) lost() int { return len(c.told.truncations) + c.tails }

// lostBetween says whether it did in that time; a zero end is now.
func (c *whole) lostBetween(from, to time.Time) bool {
	within := func(at time.Time) bool { return !at.Before(from) && (to.IsZero() || !at.After(to)) }
	return slices.ContainsFunc(c.told.truncations, within) || slices.ContainsFunc(c.jet.TailsTaken(), within) ||
		slices.ContainsFunc(c.told.interest, func(s span) bool {
			return (to.IsZero() || !s.from.After(to)) && (s.to.IsZero() || !s.to.Before(from))
		})
}

// living counts the queues that live, and polled those of them that are polled.
func (w *world) living() (n int) {
	for _, q := range w.zulip.Queues() {
		if q.Dead == "" {
			n++
		}
	}
	return n
}

func (w *world) polled() (n int) {
	for _, q := range w.zulip.Queues() {
		if q.Dead == "" && q.Waiting {
			n++
		}
	}
	return n
}

// check compares the stream with what Zulip put in the queues.
func (w *world) check() {
	for try := 0; w.polled() != 1 && try < 40; try++ { // between two polls nobody polls
		time.Sleep(250 * time.Millisecond)
	}
	counters := w.counters() // first: what is stored behind it is not in it
	c := &whole{world: w, queues: w.zulip.Queues(), tails: len(w.jet.TailsTaken()), recorded: map[string]bool{},
		next: map[string]*written{}, gaps: map[string][]*written{}}
	at, fates := w.jet.When(), w.jet.Fates()
	for n, m := range w.jet.Ever(0) {
		id, _ := strconv.ParseInt(first(m, events.HeaderMessageID), 10, 64)
		c.all = append(c.all, written{m, at[n], fates[n], first(m, events.HeaderRecord),
			first(m, events.HeaderQueueID), id})
	}
	for n := range c.all {
		switch m := &c.all[n]; m.record {
		case "queue":
			if m.stands() {
				c.recorded[m.queue] = true
				q := said[queueSaid](w, m)
				if q.Why == "changed over" {
					drawn.count("a change-over because of the pace")
				}
				if q.Previous != "" && q.Previous != m.queue && q.Why != "lost" {
					c.next[q.Previous] = m
				}
			}
		case "gap-opened":
			c.gaps[m.queue] = append(c.gaps[m.queue], m)
			if q := said[gapSaid](w, m).GivenUp; q != "" {
				c.gaps[q] = append(c.gaps[q], m)
			}
		}
	}
	c.counted(counters)
	c.deserted = w.told.accounts > 0
	for _, i := range w.instances {
		if i.ended() && w.told.accounts == 0 { // an account that was replaced before it was let in ends it
			w.t.Errorf("%s does not run in the end", i.name)
		}
		c.deserted = c.deserted && !i.running()
	}
	c.twice()
	c.cloudEvents()
	c.events()
	c.private()
	c.placed()
	c.gapsAreTrue()
	c.leftOver()
	c.messages()
	c.erasures()
	c.states()
}

// erasures: what was erased is about a message that was deleted at Zulip, and a record
// names it; and nothing is left of a text whose deletion the stream tells.
func (c *whole) erasures() {
	deleted := map[int64]bool{}
	for _, m := range c.zulip.Messages() {
		deleted[m.ID] = !m.Deleted.IsZero()
	}
	named, gone := map[uint64]bool{}, map[string]bool{}
	for n := range c.all {
		if m := &c.all[n]; m.record == "erased" {
			for _, seq := range said[events.Erased](c.world, m).Seqs {
				named[seq] = true
			}
		}
	}
	for n := range c.all {
		m := &c.all[n]
		if m.fate != model.Erased {
			continue
		}
		if id := aboutMessage(m); !deleted[id] && (id != 0 || first(m.Stored, events.HeaderObject) == "") {
			c.t.Errorf("what is erased at %d, on %s, is about message %d, and nobody has deleted that", m.Seq, m.Subject, id)
		}
		if !named[m.Seq] {
			c.t.Errorf("no record names what is erased at %d, on %s", m.Seq, m.Subject)
		}
		gone[first(m.Stored, events.HeaderObject)] = true
	}
	if !c.told.erases || c.deserted {
		return
	}
	objects := c.jet.Objects()
	for name := range objects {
		if gone[name] {
			c.t.Errorf("the stub of object %s is erased, and it is there", name)
		}
	}
	texts := map[string]string{} // and what tells of their deletion
	for n := range c.all {
		m := &c.all[n]
		if m.fate != model.Held || m.record != "" || first(m.Stored, events.HeaderEventType) != "delete_message" {
			continue
		}
		drawn.count("a deletion that the stream tells")
		var body events.DeleteMessage
		if err := json.Unmarshal(m.Data, &body); err != nil {
			c.t.Errorf("a deletion is no JSON: %v", err)
		}
		for _, id := range body.IDs() {
			for _, text := range c.texts[id] {
				texts[text] = fmt.Sprintf("message %d, as %d tells", id, m.Seq)
			}
		}
	}
	for n := range c.all {
		m := &c.all[n]
		if m.fate != model.Held {
			continue
		}
		where := [][]byte{m.Data, objects[first(m.Stored, events.HeaderObject)]}
		for text, told := range texts {
			if bytes.Contains(where[0], []byte(text)) || bytes.Contains(where[1], []byte(text)) {
				c.t.Errorf("%q was deleted (%s), and is still at %d, on %s", text, told, m.Seq, m.Subject)
			}
		}
	}
}

// aboutMessage is the message that an event or a rejected one has something of.
func aboutMessage(m *written) int64 {
	if m.id != 0 {
		return m.id
	}
	data := m.Data
	if e := rejectedEvent(m.Stored); e != "" {
		data = []byte(e)
	}
	for _, key := range []string{`"message_id":`, `"message":{"id":`} {
		if _, rest, ok := bytes.Cut(data, []byte(key)); ok {
			n := 0
			for n < len(rest) && rest[n] >= '0' && rest[n] <= '9' {
				n++
			}
			id, _ := strconv.ParseInt(string(rest[:n]), 10, 64)
			return id
		}
	}
	return 0
}

// cloudEvents: whatever is written, and is a CloudEvent if that was asked for, has the id
// that it is known by, so an event that is written once more has the same.
func (c *whole) cloudEvents() {
	for n := range c.all {
		m := &c.all[n]
		if want := events.Key(m.Header); ours(&m.Stored) && c.told.cloud && first(m.Stored, events.HeaderCloudID) != want {
			c.t.Errorf("the CloudEvent %q at #%d should have the id %q", first(m.Stored, events.HeaderCloudID), m.Seq, want)
		}
	}
}

// twice: no event and no message is there twice.
func (c *whole) twice() {
	stored, messages, rejections, there := map[key][]time.Time{}, map[int64]int{}, map[string]int{}, map[int64]bool{}
	// A newest message that the limits took is not seen.
	taken := func(from, to time.Time) bool {
		return slices.ContainsFunc(c.jet.TailsTaken(), func(at time.Time) bool { return !at.Before(from) && !at.After(to) })
	}
	for n := range c.all {
		m := &c.all[n]
		if id, err := strconv.ParseInt(first(m.Stored, events.HeaderEventID), 10, 64); err == nil && m.stands() {
			k := key{m.queue, id}
			stored[k] = append(stored[k], m.at)
		}
		if m.id != 0 && m.record == "" {
			there[m.id] = there[m.id] || m.fate != model.Lost
			if m.fate == model.Held {
				messages[m.id]++
			}
		}
		if e := rejectedEvent(m.Stored); e != "" && m.fate == model.Held {
			var body struct{ SHA256 string }
			_ = json.Unmarshal(m.Data, &body) // it was read just now
			rejections[m.queue+" "+body.SHA256+" "+e[:min(len(e), 200)]]++
		}
	}
	for k, at := range stored {
		for i := range at[1:] {
			if !c.twoBadOnes(k) && !taken(at[i], at[i+1]) {
				c.t.Errorf("event %d of queue %s is stored %d times", k.id, k.queue, len(at))
			}
		}
	}
	for id, n := range messages {
		if n > 1+c.told.redelivered[id] {
			c.t.Errorf("message %d is stored %d times", id, n)
		}
	}
	keys := map[string]*written{}
	for n := range c.all {
		m := &c.all[n]
		if m.queue == "" && m.record == "" || m.fate != model.Held {
			continue
		}
		k := events.Key(m.Header)
		if before := keys[k]; before != nil && !taken(before.at, m.at) {
			c.t.Errorf("messages %d and %d have the same key %q", before.Seq, m.Seq, k)
		}
		if k == "" {
			c.t.Errorf("message %d has no key", m.Seq)
		}
		keys[k] = m
	}
	for e, n := range rejections {
		if n > 1+c.tails { // it has no id, so only a read says that it was rejected
			c.t.Errorf("one event is rejected %d times: %s", n, e)
		}
	}
	for n := range c.all {
		if m := &c.all[n]; m.record == "skipped" && m.stands() && !there[m.id] && !c.truncated && !c.deletes(m.id) {
			c.t.Errorf("message %d was skipped, and the stream does not hold it", m.id)
		}
	}
}

// deletes says whether the stream has ever told that a message was deleted.
func (c *whole) deletes(id int64) bool {
	return slices.ContainsFunc(c.all, func(m written) bool {
		var body events.DeleteMessage
		return first(m.Stored, events.HeaderEventType) == "delete_message" && json.Unmarshal(m.Data, &body) == nil &&
			slices.Contains(body.IDs(), id)
	})
}

// twoBadOnes: Zulip itself put two events with one id in the queue, which stories do.
func (c *whole) twoBadOnes(k key) bool {
	n := 0
	for _, q := range c.queues {
		for _, e := range q.Events {
			if q.ID == k.queue && (e.ID == k.id ||
				strings.Contains(string(e.Raw), fmt.Sprintf(`"id":%d`, k.id)) && e.Type == "raw") {
				n++
			}
		}
	}
	return n > 1
}

// events: every event that Zulip put in a queue is there in its order, but for those that
// Zulip dropped with the queue, which a gap tells of.
func (c *whole) events() {
	places, rejected, excluded := map[key]int{}, map[string]bool{}, map[key]bool{}
	ever := map[key][]*written{}
	for n := range c.all {
		m := &c.all[n]
		if e := rejectedEvent(m.Stored); e != "" {
			rejected[m.queue+" "+e] = true
		}
		for id := range excludedEvents(m.Stored) {
			k := key{m.queue, id}
			ever[k] = append(ever[k], m)
			if m.stands() {
				places[k], excluded[k] = n, true
			}
		}
		if id, err := strconv.ParseInt(first(m.Stored, events.HeaderEventID), 10, 64); err == nil && m.record != "excluded" {
			k := key{m.queue, id}
			ever[k] = append(ever[k], m)
			if m.stands() {
				places[k] = n
			}
		}
	}
	for i := range c.queues {
		q := &c.queues[i]
		if q.Dead == "" && q.Waiting {
			c.alive++
		}
		last := -1
		for _, e := range q.Events {
			k := key{q.ID, int64(e.ID)}
			p, ok := places[k]
			if ok && excluded[k] && !json.Valid(e.Raw) {
				ok = false
			}
			if ok {
				if p < last {
					c.t.Errorf("event %d of queue %s is out of order", e.ID, q.ID)
				}
				last = p
				if excluded[k] && !c.mayBeExcluded(&e) {
					c.t.Errorf("event %d of queue %s was left out: %.200s", e.ID, q.ID, e.Raw)
				}
				continue
			}
			if rejected[q.ID+" "+string(e.Raw)] || rejected[q.ID+" "+withheld(e.Raw)] {
				continue // an event that is no JSON has no id to be found by
			}
			if !e.Pruned.IsZero() {
				// It was stored, or checkAck has complained; the stream lost it.
				if !c.truncated || !c.vanished(ever[k]...) {
					c.t.Errorf("event %d of queue %s was acknowledged, and is not there: %.200s", e.ID, q.ID, e.Raw)
				}
				continue
			}
			if len(ever[k]) > 0 && c.truncated && c.vanished(ever[k]...) {
				continue // likewise: a change-over acknowledges its last answer by a DELETE
			}
			if why := c.mayLack(q, &e); why != "" {
				c.t.Errorf("event %d of queue %s is not stored (%s): %.200s", e.ID, q.ID, why, e.Raw)
			}
		}
	}
	if c.alive != 1 && !c.deserted {
		c.t.Errorf("%d queues are polled in the end, want 1", c.alive)
	}
}

// vanished says whether the stream may have lost that message after it was stored: none
// may be acknowledged to Zulip that vanished because of a retention that was known to be
// wrong.
func (c *whole) vanished(ever ...*written) bool {
	for _, m := range ever {
		for _, s := range c.told.interest {
			known := s.from.Add(time.Second)
			if s.silent || c.told.paused { // known at the next look, whenever that is
				continue
			}
			if m.at.After(known) && (s.to.IsZero() || m.at.Before(s.to)) {
				return false
			}
		}
	}
	return true
}

// noInterest says whether a message was stored while the retention was wrong, and before
// that could be known.
func (c *whole) noInterest(m *written) bool {
	return c.vanished(m) && slices.ContainsFunc(c.told.interest,
		func(s span) bool { return !m.at.Before(s.from) && (s.to.IsZero() || !m.at.After(s.to)) })
}

// mayLack says why the stream must hold an event that Zulip was never told to forget;
// empty if it may lack it.
func (c *whole) mayLack(q *zulipsim.QueueInfo, e *zulipsim.QueuedEvent) string {
	if !c.recorded[q.ID] {
		return "" // nobody ever followed that queue
	}
	if len(c.gaps[q.ID]) > 0 {
		return "" // a gap tells of it; gapsAreTrue says whether it may
	}
	if over := c.next[q.ID]; over != nil {
		for i := range c.queues {
			if to := &c.queues[i]; to.ID == over.queue && e.Put.Before(to.Created) {
				return "the bridge changed over, and the event was put in this queue before the other was made"
			}
		}
		return "" // it is in the other queue too
	}
	lost := c.lostBetween(q.Created, time.Time{})
	switch {
	case q.Dead == "deleted" && !lost:
		return "the bridge deleted the queue that the stream names"
	case q.Dead == "deleted", q.Dead != "" && (lost || c.deserted):
		return ""
	case q.Dead != "":
		return "Zulip has dropped the queue, and no gap tells of it"
	case !q.Waiting && !lost && !c.deserted:
		return "nobody polls the queue that the stream names"
	case !q.Waiting:
		return ""
	}
	return "the queue is polled"
}

// gapsAreTrue: a gap that says that Zulip has dropped the queue names one that Zulip has
// dropped by itself by then.
func (c *whole) gapsAreTrue() {
	if !c.told.sim {
		return
	}
	queues := map[string]*zulipsim.QueueInfo{}
	for i := range c.queues {
		queues[c.queues[i].ID] = &c.queues[i]
	}
	for n := range c.all {
		m := &c.all[n]
		if m.record != "gap-opened" {
			continue
		}
		cause, q := said[gapSaid](c.world, m).Cause, queues[m.queue]
		died := q != nil && q.Dead != "" && (q.Died.Before(m.at) || q.Dead != "deleted" && q.Died.Equal(m.at))
		switch {
		case strings.Contains(cause, "account"):
			if c.told.accounts == 0 {
				c.t.Errorf("a gap at %v says %q, and there is one account", m.at, cause)
			}
		case m.queue == "":
			if !c.lostBetween(time.Time{}, m.at) && !c.told.foreign {
				c.t.Errorf("a gap at %v without a queue says %q, and the stream lost nothing", m.at, cause)
			}
		case strings.Contains(cause, "lost its newest"):
			if !c.lostBetween(time.Time{}, m.at) {
				c.t.Errorf("a gap at %v for queue %s says %q, and it lost nothing", m.at, m.queue, cause)
			}
		case q == nil:
			c.t.Errorf("a gap at %v for queue %s, which Zulip never made", m.at, m.queue)
		case died && q.Dead == "deleted" && !c.lostBetween(q.Created, m.at): // else the record of what came behind it was lost
			c.t.Errorf("a gap at %v for queue %s, which the bridge itself had deleted at %v", m.at, m.queue, q.Died)
		case !died && !c.lostBetween(q.Created, m.at) && c.told.accounts == 0 && c.refusals(m.queue, m.at) < 2:
			c.t.Errorf("a gap at %v for queue %s, which lived: %s", m.at, m.queue, cause)
		}
	}
}

// refusals counts how often Zulip was made to refuse polls of a queue shortly before a
// time.
func (c *whole) refusals(queue string, before time.Time) (n int) {
	for _, r := range c.zulip.Requests() {
		if r.Kind == zulipsim.Events && r.Fault && r.Status == http.StatusBadRequest && r.Params["queue_id"] == queue &&
			!r.Time.After(before) && before.Sub(r.Time) < 5*time.Minute {
			n++
		}
	}
	return n
}

// leftOver: no queue lives that nobody polls, but for one that was just made when its
// process was killed, or stopped while it could not know whether the stream names it; or
// which Zulip failed to delete. One that the stream has named is never excused: the next
// start deletes it.
func (c *whole) leftOver() {
	if !c.told.sim || c.deserted {
		return
	}
	failed := map[string]bool{}
	for _, r := range c.zulip.Requests() {
		if r.Kind == zulipsim.Delete && r.Status != http.StatusOK {
			failed[r.Params["queue_id"]] = true
		}
	}
	var left []string
	for _, q := range c.queues {
		if q.Dead != "" || q.Waiting || failed[q.ID] || q.Account != c.account.Email ||
			time.Since(q.Created) < 30*time.Second {
			continue
		}
		cut := slices.ContainsFunc(c.told.cut, func(at time.Time) bool { return !q.Created.After(at.Add(time.Second)) })
		if !c.recorded[q.ID] && cut {
			continue
		}
		named := fmt.Sprintf("%s (made at %v, in a record: %v)", q.ID, q.Created, c.recorded[q.ID])
		if !c.lostBetween(q.Created, time.Time{}) {
			c.t.Errorf("a queue is left over at Zulip: %s, and the stream has lost nothing since", named)
		}
		left = append(left, named)
	}
	if n := c.lost(); len(left) > n {
		c.t.Errorf("queues are left over at Zulip: %v; want at most %d, the losses of the stream", left, n)
	}
}

// messages are the one thing that a gap may not cost: those sent after the first queue
// was recorded are all there, but for what the records name.
func (c *whole) messages() {
	there, backfilled := map[int64]bool{}, map[int64]bool{}
	began, firsts, assumed := time.Time{}, 0, false
	behind := int64(0) // a first start begins behind the newest id that history showed
	var named, missing []gapSaid
	for n := range c.all {
		m := &c.all[n]
		if m.id != 0 && m.record == "" && (m.fate != model.Lost || c.noInterest(m)) {
			there[m.id] = true
			if first(m.Stored, events.HeaderOrigin) == "backfill" {
				backfilled[m.id] = true
			}
		}
		switch m.record {
		case "queue":
			q := said[queueSaid](c.world, m)
			assumed = assumed || q.Assumed
			if began.IsZero() || q.Why == "first" {
				began = m.at // of a stream that was empty: what was before is forgotten
				if behind = max(q.Newest.Own, q.Newest.Public); q.Why == "first" {
					firsts++
				}
			}
		case "gap-closed":
			g := said[gapSaid](c.world, m)
			if g.NotRefilled != nil || g.NotCompared != nil {
				named = append(named, g)
			}
			if g.Missing != nil {
				missing = append(missing, g)
			}
		}
	}
	if c.told.sim {
		if firsts > 1+c.lost() && len(c.told.interest) == 0 {
			c.t.Errorf("%d first starts, and the stream lost what it held %d times", firsts, c.lost())
		}
		if len(named) > 0 && !c.told.paused && !c.told.bounds && !c.told.limits && !c.told.history && !c.told.foreign &&
			c.lost() == 0 && !slices.ContainsFunc(c.told.used, func(u wanted) bool { return !u.messages }) &&
			!slices.ContainsFunc(named, func(g gapSaid) bool {
				return g.NotRefilled == nil || strings.Contains(g.NotRefilled.Reason, "idle time")
			}) {
			c.t.Errorf("messages were not refilled, though nothing kept the bridge from it: %s",
				named[0].NotRefilled.Reason)
		}
	}
	rejected := map[string]bool{} // by queue and event id
	for _, m := range c.all {
		if m.record == "rejected" {
			rejected[m.queue+" "+first(m.Stored, events.HeaderEventID)] = true
		}
	}
	tooLarge := map[int64]bool{} // a rejected record stands for their events
	for i := range c.queues {
		for _, e := range c.queues[i].Events {
			if e.MessageID != 0 && rejected[fmt.Sprint(c.queues[i].ID, " ", e.ID)] {
				tooLarge[e.MessageID] = true
			}
		}
	}
	wantedBy := func(m *zulipsim.StoredMessage) (all, any bool) {
		all = true
		for _, u := range c.told.used {
			if u.messages && (u.channel == "" || u.channel == m.Channel) && !(u.noDirect && m.Channel == "") {
				any = true
			} else {
				all = false
			}
		}
		return all, any
	}
	asked := func(m *zulipsim.StoredMessage) bool { // to start in the past
		s := c.told.start
		return c.told.startFrom && (s.id > 0 && m.ID >= s.id ||
			s.id == 0 && !m.Time.Truncate(time.Second).Before(s.sent))
	}
	for _, m := range c.zulip.Messages() {
		all, any := wantedBy(&m)
		if backfilled[m.ID] && c.told.sim {
			switch {
			case !any:
				c.t.Errorf("message %d, to #%s, was refilled: the queue would never have got it", m.ID, m.Channel)
			case c.told.limits && len(c.told.redelivered) > 0: // an old one that is all that is left says nothing
			case c.lost() > 0 && slices.ContainsFunc(c.told.used, func(u wanted) bool { return !u.messages }):
				// The record that is left may be that of a queue without messages.
			case assumed: // the record that said where the story begins was gone: a transaction may have been open then
			case !asked(&m) && (m.ID <= c.told.before || m.Committed.Before(c.told.since.Add(-5*time.Minute))):
				c.t.Errorf("message %d, of %v, was refilled: it is from before the first start that wanted "+
					"messages, at %v", m.ID, m.Committed, c.told.since)
			}
		}
		clockPut := slices.ContainsFunc(c.told.clockPut, func(p put) bool { return p.unclear(m.Committed) })
		if there[m.ID] || tooLarge[m.ID] || clockPut || !all || !m.Deleted.IsZero() || // history has it no more
			(!m.Committed.After(began) || m.ID <= behind) && !asked(&m) {
			continue
		}
		if !c.deserted && !slices.ContainsFunc(named, func(g gapSaid) bool { return names(&g, &m) }) &&
			!slices.ContainsFunc(missing, func(g gapSaid) bool { return c.misses(&g, &m) }) {
			c.t.Errorf("message %d, sent at %v, is not in the stream, and no record names it (%d gaps closed with "+
				"something left out)", m.ID, m.Committed, len(named))
		}
	}
}

// misses says whether a gap-closed record names the event of a message among those that
// the stream had lost.
func (c *whole) misses(g *gapSaid, m *zulipsim.StoredMessage) bool {
	for i := range c.queues {
		q := &c.queues[i]
		if q.ID != g.Old && q.ID != g.Queue {
			continue
		}
		for _, e := range q.Events {
			if e.MessageID == m.ID && e.ID > g.Missing.Above && e.ID <= g.Missing.UpTo {
				return true
			}
		}
	}
	return false
}

// names says whether a gap-closed record names a message among those that it left out.
func names(g *gapSaid, m *zulipsim.StoredMessage) bool {
	if n := g.NotCompared; n != nil && m.ID > n.Above && m.ID <= n.UpTo {
		return true
	}
	r := g.NotRefilled
	if r == nil {
		return false
	}
	if slices.Contains(r.TooLarge, m.ID) {
		return true
	}
	if r.UpTo == 0 && r.Above > 0 && m.ID > r.Above && !m.Committed.After(g.Closed) {
		return true // history did not say which was the newest
	}
	if r.UpTo > 0 && m.ID > r.Above && m.ID <= r.UpTo {
		return true
	}
	if than, err := time.Parse(time.RFC3339, r.OlderThan); err == nil && r.TooOld > 0 &&
		m.Time.Before(than.Add(2*time.Second)) {
		return true
	}
	// Where the record that says which messages are missing is gone itself, there are no
	// bounds to name.
	return r.UpTo == 0 && r.Above == 0 && r.TooOld == 0
}

// counters are what each run of each instance has counted, by its name.
func (w *world) counters() map[string]bridge.Counters {
	all := map[string]bridge.Counters{}
	for _, i := range w.instances {
		for n, b := range i.bridges {
			all[i.name+strconv.Itoa(n+1)] = b.Status().Counters
		}
	}
	return all
}

// counted complains of what a run says that it has stored and never did. It may have
// stored more: it was killed, or did not learn of it.
func (c *whole) counted(counters map[string]bridge.Counters) {
	for writer, has := range counters {
		stored := map[string]uint64{}
		for _, m := range c.all {
			if first(m.Stored, events.HeaderWriter) == writer {
				stored[countedAs(m.Stored)]++
			}
		}
		for name, n := range counted(has) {
			if kind, _, _ := strings.Cut(name, " "); kind != "event" && !slices.Contains(storedKinds, name) {
				continue
			}
			if n > stored[name] {
				c.t.Errorf("%s has counted %d of %q, and stored %d", writer, n, name, stored[name])
			}
		}
	}
}

// storedKinds are the counters of what is stored, besides those of events by type.
var storedKinds = []string{"rejected", "skipped", "refilled"}

// countedAs is the counter that a stored message is counted by; empty: none.
func countedAs(m stream.Stored) string {
	switch record := first(m, events.HeaderRecord); {
	case record == events.RecordRejected || record == events.RecordSkipped:
		return record
	case record != "":
		return "" // and those left out are more than the records
	case first(m, events.HeaderOrigin) == events.OriginBackfill:
		return "refilled"
	}
	if kind := first(m, events.HeaderEventType); slices.Contains(poller.EventTypes(), kind) {
		return "event " + kind
	}
	return "event other"
}

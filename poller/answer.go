package poller

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync/atomic"
	"time"

	"zulip-nats/health"
)

const (
	// maxBatch bounds the events of one batch, unless Client.MaxBatch does.
	maxBatch = 1000
	// firstWindow is the size of the buffer that an answer is read into at first: most
	// have one event, and there may be thousands of realms. What does not fit makes it
	// grow to quickWindow at once, and then, batch by batch, to maxWindow in order to
	// gather more events in each. Only a single event larger than that makes it grow
	// further.
	firstWindow, quickWindow, maxWindow = 4 << 10, 64 << 10, 2 << 20
	// mostWindows is by how much all windows together may be larger than quickWindow each.
	mostWindows = 64 << 20
	// maxEvent is the size up to which an event is kept whole, unless Client.maxEvent
	// says otherwise.
	maxEvent = 64 << 20
	// cutEvent is how much is kept of an event that is larger than that.
	cutEvent = 1 << 20
	// linger is how long an event that is here waits for others that are still on their
	// way.
	linger = time.Second
	// moment is how long Poller.Soon waits.
	moment = 100 * time.Millisecond
	// maxField bounds what is kept of a plain member of an answer, msg say.
	maxField = 4 << 10
)

// answer is the answer to one poll while it is being read. The events come out of it in
// batches, so that an answer of any size takes the memory of a window. It is for one
// goroutine.
type answer struct {
	at       Position  // polled with
	sent     time.Time // when it was asked for
	came     time.Time // when it began
	patience time.Duration
	limit    int    // largest event kept whole
	most     int    // events of a batch
	asked    string // method and path
	rate     rate
	scrub    func(string) string // takes the key out of texts

	pump   *pump
	cancel context.CancelCauseFunc
	eof    error // what ended the bytes: io.EOF or worse

	// The window: buf[pos:end] is still to be parsed; buf[first:pos] is the element being
	// read, if any.
	buf             []byte
	first, pos, end int
	borrowed        int64 // of windows

	place place
	list  list
	field string // key at the top whose value comes
	scan  scanner
	bad   lenient
	cut   *cutting // the element being read is too large to be kept whole

	result    string // as far as it is known
	msg       string
	hasEvents bool
	fields    map[string]string // other plain members of the outer object, for lists of messages
	waited    bool
	dontBlock bool  // asked not to wait
	count     int   // elements so far
	last      int64 // largest id handed out so far, or at.Last
	done      bool  // read to its end
	err       error // why it ended early; given out once all events before it are
	batch     Batch
	bytes     int
	silence   *time.Timer
	lingering *time.Timer
}

// place is where in the answer's outer object the parser stands.
type place uint8

const (
	placeStart place = iota
	placeFirstKey
	placeKey
	placeInKey
	placeColon
	placeValue
	placeInValue
	placeNext
	placeFirstElement // in the list, behind '['
	placeElement      // behind ','
	placeInElement
	placeInBad     // in an element that is no JSON
	placeLost      // likewise, and its end cannot be found by its brackets
	placeHeld      // behind an element that is no event
	placeHeldComma // ... and the comma behind that
	placeElementNext
	placeEnd // behind the outer object
)

// list is what the elements of the answer's list are.
type list struct {
	key string // "events" or "messages"
	// each takes messages one by one; nil: events are gathered in batches.
	each func(raw []byte, s *scanner, fault string) error
}

// newAnswer takes over the body of a 200. Close must be called; it calls cancel, which
// must make a read of the body fail.
func newAnswer(body io.ReadCloser, gzipped bool, cancel context.CancelCauseFunc) *answer {
	a := &answer{cancel: cancel, list: list{key: "events"}, most: maxBatch}
	a.pump = startPump(body, gzipped)
	a.silence, a.lingering = time.NewTimer(time.Hour), time.NewTimer(time.Hour)
	a.silence.Stop()
	a.lingering.Stop()
	return a
}

// Close ends the connection if the answer was not read to its end, and waits until
// nothing of it is left running.
func (a *answer) Close() {
	if a.pump == nil {
		return
	}
	if a.done && a.eof == nil {
		// Read to its very end the body's connection serves again. It is a matter of
		// bytes that are here already, else of no matter.
		end := time.NewTimer(linger)
		for range 4 {
			if _, err := a.pump.read(context.Background(), make([]byte, 512), nil, end.C); err != nil {
				break
			}
		}
		end.Stop()
	}
	a.cancel(errClosed)
	a.pump.stop()
	a.pump, a.buf = nil, nil
	windows.Add(-a.borrowed)
	a.borrowed = 0
}

// windows is what the windows of all answers have that are being read, beyond what each
// begins with, in bytes.
var windows atomic.Int64

// borrow says whether a window may become so much larger. A thousand realms may have a
// backlog at the same time, behind an outage of NATS: then batches stay small.
func (a *answer) borrow(n int) bool {
	if windows.Add(int64(n)) > mostWindows {
		windows.Add(-int64(n))
		return false
	}
	a.borrowed += int64(n)
	return true
}

var errClosed = errors.New("the answer was closed")

// Next returns the next events, at most a batch of them. It waits for a whole batch, or
// the answer's end, but not longer than about a second once there is one event. At the
// end of the answer the batch may be empty and a.done is set. An error is the context's,
// or a *trouble: the answer was cut short, fell silent, or is none.
func (a *answer) Next(ctx context.Context) (*Batch, error) { return a.next(ctx, 0) }

// next is Next, but waits no longer than most, if that is not 0; then the batch may be
// empty too.
func (a *answer) next(ctx context.Context, most time.Duration) (*Batch, error) {
	spoil(a.batch.Events)
	a.batch = Batch{Events: a.batch.Events[:0], More: true}
	a.bytes = 0
	if a.err != nil {
		return nil, a.err
	}
	a.silence.Reset(a.patience)
	defer a.silence.Stop()
	defer a.lingering.Stop()
	lingering := most > 0
	if lingering {
		a.lingering.Reset(most)
	}
	for {
		a.parse()
		if a.result != "" && a.result != "success" {
			// Said before or after the events: in either case they are not to be
			// believed, as far as they are not out already. The answer is read on, for
			// the msg.
			a.batch.Events, a.bytes = a.batch.Events[:0], 0
			if a.done || a.err != nil {
				a.err = &transientError{text: fmt.Sprintf("Zulip answers %s to %s, status 200: %s", quote(a.result), a.asked,
					quote(a.scrub(a.msg)))}
			}
		}
		switch {
		case a.err != nil && len(a.batch.Events) == 0:
			return nil, a.err
		case a.err != nil || a.done || a.full():
			a.batch.Waited, a.batch.More = a.waited && a.done, !a.done
			return &a.batch, nil
		}
		if len(a.batch.Events) > 0 && !lingering {
			lingering = true
			a.lingering.Reset(linger)
		}
		if !a.makeRoom() {
			return &a.batch, nil
		}
		if a.pos < a.end {
			continue
		}
		health.Waits(ctx, a.patience)
		n, err := a.pump.read(ctx, a.buf[a.end:], a.silence.C, a.lingering.C)
		switch err {
		case errLinger:
			return &a.batch, nil
		case errInterrupted:
			return nil, ctx.Err()
		case errSilent:
			a.cancel(err)
			a.err = &transientError{text: fmt.Sprintf("Zulip fell silent in the middle of its answer to %s: nothing for %v",
				a.asked, a.patience)}
			continue
		}
		a.end += n
		a.eof = err
		if n > 0 {
			a.silence.Reset(a.patience)
		}
	}
}

// full reports whether the batch is.
func (a *answer) full() bool { return len(a.batch.Events) >= a.most || a.bytes >= maxWindow }

// makeRoom sees to it that something can be read into the window, and reports whether it
// can. It cannot while events of the batch lie in the window and fill it.
func (a *answer) makeRoom() bool {
	if len(a.buf)-a.end >= min(4<<10, len(a.buf)/4+1) || a.pump.reading {
		return true
	}
	keep := a.first // bytes in front of it are done with
	if !a.inElement() {
		keep = a.pos
	}
	switch {
	case len(a.buf) > 0 && len(a.buf) < quickWindow && a.cut == nil:
		// What the batch has stays where it is.
		into := make([]byte, min(4*len(a.buf), quickWindow))
		a.end = copy(into, a.buf[keep:a.end])
		a.pos -= keep
		a.first = max(0, a.first-keep)
		a.buf = into
	case len(a.batch.Events) > 0:
		return false
	case a.cut != nil:
		a.cut.swallow(a)
		return true
	case keep > 0:
		// Room is made once per batch, here: the batch before is no longer valid. An
		// answer that filled its window gets a larger one.
		into := a.buf
		larger := min(2*len(a.buf), maxWindow)
		if held := a.end - keep; len(a.buf) < maxWindow && a.borrow(larger-len(a.buf)) ||
			len(a.buf) > maxWindow && held < maxWindow/2 {
			into = make([]byte, larger)
		}
		a.end = copy(into, a.buf[keep:a.end])
		a.pos -= keep
		a.first = max(0, a.first-keep)
		a.buf = into
	case len(a.buf) == 0:
		a.buf = make([]byte, firstWindow)
	case a.place == placeLost && len(a.buf) >= maxWindow && a.refind(false):
		// Events again.
	case len(a.buf) < a.limit:
		bigger := make([]byte, min(2*len(a.buf), a.limit))
		copy(bigger, a.buf[:a.end])
		a.buf = bigger
	case a.end < len(a.buf):
		// The last few bytes that an element kept whole may have.
	default:
		// One element fills the whole window.
		if a.place == placeLost {
			if a.refind(false) {
				return true
			}
			a.place = placeInBad // to be taken as one, whatever its brackets say
		}
		a.cut = startCutting(a)
	}
	return true
}

func (a *answer) inElement() bool {
	return a.place >= placeInElement && a.place <= placeHeldComma
}

// parse takes what is in the window, until it is used up, the batch is full, or the
// answer has ended one way or the other.
func (a *answer) parse() {
	for !a.done && a.err == nil {
		if a.full() {
			return
		}
		if a.pos == a.end {
			if a.eof == nil {
				return
			}
			a.finish()
			continue
		}
		c := a.buf[a.pos]
		switch a.place {
		case placeInKey, placeInValue:
			a.member()
		case placeInElement:
			n, err := a.scan.scan(a.buf[a.pos:a.end])
			a.pos += n
			switch {
			case err != nil:
				a.bad = lenient{fault: fmt.Sprintf("no JSON: %v at byte %d", err, a.size())}
				a.bad.take(&a.scan)
				a.place = placeInBad
			case a.scan.state != scanDone:
			case a.scan.isObject && a.scan.idState == idGood && a.scan.hasType:
				a.place = placeElementNext
				a.element("")
			default:
				a.bad = lenient{}
				a.place = placeHeld
			}
		case placeInBad:
			n, end := a.bad.scan(&a.scan, a.buf[a.pos:a.end], a.cut != nil)
			a.pos += n
			switch end {
			case endFound:
				a.place = placeHeld
			case endLost:
				a.place = placeLost
			}
		case placeLost:
			a.pos = a.end
		default:
			if isSpace(c) {
				a.pos++
				continue
			}
			a.punctuation(c)
		}
	}
}

// punctuation takes one byte between the parts of the outer object.
func (a *answer) punctuation(c byte) {
	a.pos++
	switch {
	case a.place == placeStart && c == '{':
		a.place = placeFirstKey
	case (a.place == placeFirstKey || a.place == placeKey) && c == '"':
		a.pos--
		a.scan.reset()
		a.scan.rootText = true
		a.place = placeInKey
	case (a.place == placeFirstKey || a.place == placeNext) && c == '}':
		a.place = placeEnd
		a.complete()
	case a.place == placeColon && c == ':':
		a.place = placeValue
	case a.place == placeNext && c == ',':
		a.place = placeKey
	case a.place == placeValue && a.field == a.list.key && c == '[':
		a.hasEvents = true
		a.place = placeFirstElement
	case a.place == placeValue:
		a.pos--
		if a.field == "queue_id" {
			a.waited = c == '"'
		}
		a.scan.reset()
		a.scan.rootText = true
		a.place = placeInValue
	case a.place == placeHeld && (c == ']' || c == ',' && a.cut != nil):
		a.pos--
		a.place = placeElementNext
		a.element(a.bad.fault)
	case a.place == placeHeld && c == ',':
		a.place = placeHeldComma
	case a.place == placeHeld:
		a.pos--
		a.bad = lenient{fault: fmt.Sprintf("no JSON: %q behind a value", c)}
		a.place = placeInBad
	case a.place == placeHeldComma && c != '"':
		a.pos = a.first + bytes.LastIndexByte(a.buf[a.first:a.pos-1], ',')
		a.place = placeElementNext
		a.element(a.bad.fault)
	case a.place == placeHeldComma:
		// A bracket or quote too many may have made one element of several, up to the end
		// of the list and the next key.
		a.place = placeLost
	case (a.place == placeFirstElement || a.place == placeElementNext) && c == ']':
		a.place = placeNext
	case a.place == placeElementNext && c == ',':
		a.place = placeElement
	case a.place == placeFirstElement, a.place == placeElement:
		a.pos--
		a.begin()
		a.place = placeInElement
	case a.place == placeElementNext:
		// Something stands between the end of an event and the comma: an element by
		// itself, which is no JSON.
		a.pos--
		a.begin()
		a.bad = lenient{fault: fmt.Sprintf("no JSON: %q behind an event", c)}
		a.place = placeInBad
	case a.place == placeStart:
		kind := "no JSON"
		if c == '<' {
			kind = "HTML"
		}
		a.err = &transientError{text: fmt.Sprintf("Zulip answers 200 (%s) to %s", kind, a.asked)}
	default:
		a.err = a.broken(fmt.Sprintf("%q where JSON does not allow it", c))
	}
}

// begin begins an element at a.pos.
func (a *answer) begin() {
	a.first = a.pos
	a.scan.reset()
}

// member reads a key or a plain value of the outer object.
func (a *answer) member() {
	n, err := a.scan.scan(a.buf[a.pos:a.end])
	a.pos += n
	if err != nil {
		a.err = a.broken(err.Error())
		return
	}
	if a.scan.state != scanDone {
		return
	}
	if a.place == placeInKey {
		a.field = a.scan.root
		a.place = placeColon
		return
	}
	a.place = placeNext
	v := a.scan.root[:min(len(a.scan.root), maxField)]
	switch a.field {
	case "result":
		if a.result = v; v == "" {
			a.result = "no result"
		}
	case "msg":
		a.msg = v
	default:
		if a.list.each != nil && len(a.fields) < 100 {
			if a.fields == nil {
				a.fields = make(map[string]string)
			}
			a.fields[a.field] = v
		}
	}
}

// complete is called when the outer object has ended.
func (a *answer) complete() {
	switch {
	case a.result == "":
		a.err = a.broken("it has no result")
	case a.result == "success" && !a.hasEvents:
		a.err = a.broken("it has no list of " + a.list.key)
	default:
		a.done = true
	}
}

// finish is called when no more bytes will come and the outer object has not ended.
func (a *answer) finish() {
	switch {
	case a.eof != io.EOF:
		// What is broken and cut besides is best asked for again.
		a.err = a.broken(a.eof.Error())
	case a.inElement() && a.place != placeInElement && (a.refind(true) || a.refindEnd()):
		// There is more to parse.
	case a.inElement() && a.place != placeInElement:
		a.element(a.bad.fault)
		a.place = placeElementNext
		a.err = a.broken("what follows an event that is no JSON cannot be told apart")
	case a.place == placeStart:
		a.err = a.broken("it is empty")
	default:
		a.err = a.broken("it ends in the middle")
	}
}

func (a *answer) broken(why string) error {
	return &transientError{text: fmt.Sprintf("Zulip's answer to %s cannot be read: %s", a.asked, why)}
}

// size is how many bytes of the element being read have been parsed.
func (a *answer) size() int64 {
	if a.cut != nil {
		return a.cut.size + int64(a.pos-a.cut.kept)
	}
	return int64(a.pos - a.first)
}

// element is called when the element being read ends at a.pos.
func (a *answer) element(fault string) {
	a.count++
	e := Event{Raw: a.buf[a.first:a.pos:a.pos], Fault: fault}
	if a.cut != nil {
		e.Size = a.size()
		e.SHA256 = a.cut.sum(a)
		e.Raw = a.buf[:a.cut.kept:a.cut.kept]
		a.cut = nil
	} else {
		e.Raw = bytes.TrimRight(e.Raw, " \t\r\n") // in front of a comma that was waited for
		e.Size = int64(len(e.Raw))
		if len(e.Raw) > a.limit { // but the window was larger still
			e.SHA256 = sha256.Sum256(e.Raw)
			e.Raw = e.Raw[:a.kept()]
		}
	}
	if a.list.each != nil {
		if fault == "" && e.Size > int64(len(e.Raw)) {
			fault = fmt.Sprintf("%d bytes are more than what is kept in memory", e.Size)
		}
		if err := a.list.each(e.Raw, &a.scan, fault); err != nil {
			a.err = err
		}
		return
	}
	s := &a.scan
	switch {
	case fault != "":
		// An id or type read out of bytes that are no JSON would be a guess, and to
		// acknowledge a guess can cost everything unread.
	case !s.isObject:
		e.Fault = "no object"
	default:
		e.Type, e.Op = s.typ, s.op
		if e.Type == "message" {
			e.MessageID = s.msgID
		}
		e.Recipient, e.ChannelID = s.place(e.Type)
		if s.idState == idGood {
			e.ID, e.HasID = s.id, true
		}
		switch {
		case s.idState == idMissing:
			e.Fault = "no id"
		case s.idState == idBad:
			e.Fault = "its id is no whole number from 0 to 9223372036854775807"
		case e.ID <= a.at.Last:
			return // stored long ago: the position says so
		case e.ID <= a.last:
			e.Fault = fmt.Sprintf("id goes back: %d after %d", e.ID, a.last)
		case !s.hasType:
			e.Fault = "its type is missing or no text"
		}
		if e.HasID {
			a.last = max(a.last, e.ID)
		}
	}
	a.batch.Events = append(a.batch.Events, e)
	a.bytes += len(e.Raw)
}

// refind looks for the next event behind one that is no JSON and whose end its brackets
// do not show: the first place behind a comma where an object begins that is whole and
// has a type and an id beyond all ids so far, with a comma or the end of the list behind
// it. If there is one, what stands in front of it is the bad element. Without this, one
// broken event could keep all that follow it out of reach, since without an id it cannot
// be acknowledged either. all says that no more bytes will come.
func (a *answer) refind(all bool) bool {
	if a.cut != nil {
		return false
	}
	b := a.buf[a.first:a.end]
	try := scanner{words: a.scan.words}
	for i, budget := 1, 4*len(b)+1<<20; i < len(b) && budget > 0; i++ {
		if b[i-1] != ',' {
			continue
		}
		j := i
		for j < len(b) && isSpace(b[j]) {
			j++
		}
		if j == len(b) || b[j] != '{' {
			continue
		}
		try.reset()
		n, err := try.scan(b[j:])
		budget -= n
		if err != nil || try.state != scanDone || !try.hasType || try.idState != idGood || try.id <= a.last {
			continue
		}
		rest := bytes.TrimLeft(b[j+n:], " \t\r\n")
		if len(rest) > 0 && rest[0] != ',' && rest[0] != ']' || len(rest) == 0 && all {
			continue
		}
		a.pos = a.first + i - 1
		a.element(cmp.Or(a.bad.fault, noEnd))
		a.pos = a.first + i
		a.place = placeElement
		return true
	}
	return false
}

// refindEnd looks for the end of the list behind an event that is no JSON, where no other
// event follows: the last bracket behind which stands what can end the answer. No more
// bytes will come.
func (a *answer) refindEnd() bool {
	if a.cut != nil {
		return false
	}
	b := a.buf[a.first:a.end]
	for i, tries := len(b), 0; tries < 10; tries++ {
		if i = bytes.LastIndexByte(b[:i], ']'); i < 0 {
			return false
		}
		tail := scanner{words: a.scan.words}
		if n, err := tail.scan(append([]byte(`{"":0`), b[i+1:]...)); err != nil || tail.state != scanDone ||
			len(bytes.TrimLeft(b[i+1:][n-len(`{"":0`):], " \t\r\n")) > 0 {
			continue
		}
		a.pos = a.first + i
		a.element(cmp.Or(a.bad.fault, noEnd))
		a.place = placeElementNext
		return true
	}
	return false
}

// noEnd is the fault of an element that is JSON by itself, but swallows what stands
// behind it.
const noEnd = "no JSON: it does not end where it should"

// lenient finds the end of an element that is no JSON by its quotes and brackets.
type lenient struct {
	fault              string
	inString, escaping bool
}

type lenientEnd uint8

const (
	endAhead lenientEnd = iota // not in these bytes
	endFound                   // a comma or the end of the list, with nothing open
	endLost                    // a bracket closes what another kind has opened: brackets tell nothing any more
)

// take goes on from where the strict scanner stopped.
func (l *lenient) take(s *scanner) {
	l.inString = s.state == scanEscape || s.state == scanHex
	l.escaping = s.state == scanEscape
}

// scan returns how many bytes of b belong to the element, and what ended it. It uses the
// levels that the strict scanner has open. any takes every closing bracket for any
// opening one.
func (l *lenient) scan(s *scanner, b []byte, any bool) (n int, end lenientEnd) {
	for i, c := range b {
		switch {
		case l.escaping:
			l.escaping = false
		case l.inString:
			l.escaping = c == '\\'
			l.inString = c != '"'
		case c == '"':
			l.inString = true
		case c == '{' || c == '[':
			if s.push(c == '{') != nil && !any {
				return i, endLost
			}
		case (c == '}' || c == ']') && s.depth > 0:
			if s.object != (c == '}') && !any {
				return i, endLost
			}
			s.pop()
		case (c == ',' || c == ']') && s.depth == 0:
			return i, endFound
		}
	}
	return len(b), endAhead
}

// cutting takes the bytes of an element that is too large to be kept.
type cutting struct {
	hash hash.Hash
	size int64 // bytes hashed
	kept int   // the window's first bytes, kept
}

// kept is how much is kept of an element that is too large.
func (a *answer) kept() int { return min(cutEvent, a.limit/2) }

// startCutting is called when the element fills the window from its start, all of it
// parsed.
func startCutting(a *answer) *cutting {
	c := &cutting{hash: sha256.New(), kept: a.kept()}
	c.hash.Write(a.buf[:a.end])
	c.size = int64(a.end)
	a.first, a.pos, a.end = 0, c.kept, c.kept
	return c
}

// swallow takes what has been parsed since and frees its room.
func (c *cutting) swallow(a *answer) {
	c.hash.Write(a.buf[c.kept:a.pos])
	c.size += int64(a.pos - c.kept)
	a.end = c.kept + copy(a.buf[c.kept:], a.buf[a.pos:a.end])
	a.pos = c.kept
}

// sum ends the digest at a.pos.
func (c *cutting) sum(a *answer) (sum [32]byte) {
	c.hash.Write(a.buf[c.kept:a.pos])
	c.hash.Sum(sum[:0])
	return sum
}

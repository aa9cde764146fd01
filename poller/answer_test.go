package poller

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// answerOf makes an answer to a poll from at out of a body.
func answerOf(tb testing.TB, body io.Reader, at Position) *answer {
	tb.Helper()
	a := newAnswer(io.NopCloser(body), false, func(error) {})
	a.at, a.last, a.asked, a.patience, a.limit = at, at.Last, "GET /api/v1/events", time.Minute, maxEvent
	a.scan.words = new(interned)
	a.scrub = func(s string) string { return s }
	tb.Cleanup(a.Close)
	return a
}

// readAll reads an answer to its end. Events are copied; waited and the number of batches
// come beside, and the error that ended it.
func readAll(tb testing.TB, a *answer) (events []Event, waited bool, batches int, err error) {
	tb.Helper()
	for !a.done {
		b, err := a.Next(context.Background())
		if err != nil {
			return events, waited, batches, err
		}
		if len(b.Events) > maxBatch {
			tb.Errorf("a batch of %d events", len(b.Events))
		}
		batches++
		for _, e := range b.Events {
			e.Raw = bytes.Clone(e.Raw)
			events = append(events, e)
		}
		waited = waited || b.Waited
	}
	return events, waited, batches, nil
}

// captured are the bodies of a file in testdata.
func captured(tb testing.TB, name string) (lines []struct{ File, Last, Body string }) {
	tb.Helper()
	f, err := os.Open("testdata/captured/" + name)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		tb.Fatal(err)
	}
	d := json.NewDecoder(z)
	for d.More() {
		var line struct{ File, Last, Body string }
		if err := d.Decode(&line); err != nil {
			tb.Fatal(err)
		}
		lines = append(lines, line)
	}
	return lines
}

// TestCapturedAnswers decodes what a real server sent to exactly the events that
// encoding/json sees.
func TestCapturedAnswers(t *testing.T) {
	total := 0
	for i, line := range captured(t, "events.jsonl.gz") {
		var want struct {
			Result  string
			Events  []json.RawMessage
			QueueID *string `json:"queue_id"`
		}
		if err := json.Unmarshal([]byte(line.Body), &want); err != nil {
			t.Fatal(err)
		}
		for _, step := range []int{0, 1, 1000} {
			var body io.Reader = strings.NewReader(line.Body)
			if step > 0 {
				body = &stepReader{body, step}
			}
			if step == 1 && len(line.Body) > 20000 {
				continue
			}
			events, waited, _, err := readAll(t, answerOf(t, body, Position{"q", -1}))
			if err != nil || waited != (want.QueueID != nil) || len(events) != len(want.Events) {
				t.Fatalf("%s, answer %d: %d events, waited %v, %v; want %d, %v", line.File, i, len(events), waited, err,
					len(want.Events), want.QueueID != nil)
			}
			for k, e := range events {
				id, _, typ, _, op, msgID, _ := oracle(t, want.Events[k])
				if typ != "message" {
					msgID = 0
				}
				if !bytes.Equal(e.Raw, want.Events[k]) || e.Fault != "" || !e.HasID || e.ID != id || e.Type != typ ||
					e.Op != op || e.MessageID != msgID {
					t.Fatalf("%s, answer %d: got %+v (%s)\nfor %s", line.File, i, e, e.Raw, want.Events[k])
				}
			}
		}
		total += len(want.Events)
	}
	if total < 1000 {
		t.Errorf("only %d events", total)
	}
}

// stepReader gives at most n bytes at a time.
type stepReader struct {
	r io.Reader
	n int
}

func (s *stepReader) Read(p []byte) (int, error) { return s.r.Read(p[:min(len(p), s.n)]) }

// show writes an event down: id, type, op, message id and fault, as far as they are
// there, and its bytes.
func show(e Event) string {
	var s strings.Builder
	if e.HasID {
		fmt.Fprintf(&s, "%d ", e.ID)
	}
	s.WriteString(e.Type)
	if e.Op != "" {
		s.WriteString("/" + e.Op)
	}
	if e.MessageID != 0 {
		fmt.Fprintf(&s, " m%d", e.MessageID)
	}
	if e.Fault != "" {
		s.WriteString(" !" + e.Fault)
	}
	return s.String() + " " + string(e.Raw)
}

func TestAnswers(t *testing.T) {
	const head, ok5, ok6 = `{"result":"success","msg":"","events":[`, `{"type":"a","id":5}`,
		`{"type":"b","op":"o","id":6}`
	const is5, is6 = "5 a " + ok5, "6 b/o " + ok6
	tests := []struct {
		name, body string
		want       []string
		waited     bool
		err        string // part of the error that ends it
	}{
		{"plain", head + ok5 + "," + ok6 + "]}\n", []string{is5, is6}, false, ""},
		{"waited", head + ok5 + `],"queue_id":"q"}`, []string{is5}, true, ""},
		{"waited said before", `{"queue_id":"q","events":[` + ok5 + `],"result":"success"}`, []string{is5}, true, ""},
		{"no queue id after all", head + ok5 + `],"queue_id":null}`, []string{is5}, false, ""},
		{"empty", head + "]}", nil, false, ""},
		{"empty and waited", head + ` ] , "queue_id" : "q" } `, nil, true, ""},
		{"sorted by key", `{"events":[` + ok5 + `],"msg":"","queue_id":"q","result":"success"}`,
			[]string{is5}, true, ""},
		{"white space everywhere", " \r\n{ \"result\" :\t\"success\" , \"events\" : [ \n" + ok5 + " \t, " + ok6 +
			" \n] \n} \n", []string{is5, is6}, false, ""},
		{"escaped keys", `{"r\u0065sult":"\u0073uccess","\u0065vents":[` + ok5 + `]}`, []string{is5}, false, ""},
		{"other members", `{"a":[{"events":[]}],"result":"success","b":{"result":"error"},"events":[` + ok5 + `],"c":1.5e3,"d":null}`, []string{is5}, false, ""},
		{"two lists", head + ok5 + `],"events":[` + ok6 + `]}`, []string{is5, is6}, false, ""},

		{"bad literal", head + ok5 + `,{"id":7,"x":nope},` + `{"type":"c","id":8}` + "]}",
			[]string{is5, ` !no JSON: true, false or null was expected at byte 13 {"id":7,"x":nope}`,
				`8 c {"type":"c","id":8}`}, false, ""},
		{"not JSON at all", head + `what is this,` + ok5 + "]}",
			[]string{" !no JSON: a value was expected at byte 0 what is this", is5}, false, ""},
		{"comma too many", head + `{"id":1,},` + ok5 + "]}",
			[]string{` !no JSON: a key was expected at byte 8 {"id":1,}`, is5}, false, ""},
		{"bad escape", head + `{"id":1,"x":"\q\""},` + ok5 + "]}",
			[]string{` !no JSON: there is no such escape at byte 14 {"id":1,"x":"\q\""}`, is5}, false, ""},
		{"text behind an event", head + ok5 + ` garbage ,` + ok6 + "]}",
			[]string{is5, ` !no JSON: 'g' behind an event garbage`, is6}, false, ""},
		{"missing comma", head + ok5 + ok6 + `,{"type":"c","id":8}]}`,
			[]string{is5, ` !no JSON: '{' behind an event ` + ok6, `8 c {"type":"c","id":8}`}, false, ""},
		{"wrong bracket", head + `{"id":1,"x":[1},` + ok5 + "," + ok6 + "]}",
			[]string{` !no JSON: a comma or the end of an object or list was expected at byte 14 {"id":1,"x":[1}`, is5,
				is6}, false, ""},
		{"brackets missing", head + `{"type":"m","message":{"x":[ ,` + ok5 + "," + ok6 + "]}",
			[]string{` !no JSON: a value was expected at byte 29 {"type":"m","message":{"x":[`, is5, is6}, false, ""},
		{"quote missing", head + `{"type":"m","x":"abc},` + ok5 + "," + ok6 + "]}",
			[]string{` !no JSON: a comma or the end of an object or list was expected at byte 24 {"type":"m","x":"abc}`,
				is5, is6}, false, ""},
		{"quote missing in the last", head + ok5 + `,{"type":"m","x":"abc}]}`, []string{is5}, false,
			"ends in the middle"},
		{"bracket too many", head + `{"type":"m","id":4}}},` + ok5 + "]}",
			[]string{`4 m {"type":"m","id":4}`, " !no JSON: '}' behind an event }}", is5}, false, ""},
		{"broken list in a broken event",
			head + `{"drafts":[{"id":90,"type":"x"},{"id":91,"type":"y"}],"id":nope},` + ok5 + "]}",
			[]string{` !no JSON: true, false or null was expected at byte 60 {"drafts":[{"id":90,"type":"x"},{"id":91,"type":"y"}],"id":nope}`, is5}, false, ""},

		{"no object", head + `null,7,"x",[{"id":5}],true,` + ok5 + "]}",
			// A string might as well be the next key of the answer, if a bracket in front
			// was too many.
			[]string{" !no object null", ` !no JSON: it does not end where it should 7,"x",[{"id":5}],true`,
				is5}, false, ""},
		{"no object, each by itself", head + `null,7,[{"id":5}],` + ok5 + `,true,` + ok6 + `,"x"]}`,
			[]string{" !no object null", " !no object 7", ` !no object [{"id":5}]`, is5, " !no object true", is6,
				` !no object "x"`}, false, ""},
		{"bracket too many in front of the end", head + `[1,` + ok5 + `],"queue_id":"q"}`,
			[]string{` !no JSON: it does not end where it should [1`, is5}, true, ""},
		{"no id", head + `{"type":"a"} , ` + ok5 + "]}", []string{`a !no id {"type":"a"}`, is5}, false, ""},
		{"id of all sorts", head + `{"type":"a","id":"5"},{"type":"a","id":null},{"type":"a","id":5.0},{"type":"a","id":-5},{"type":"a","id":9223372036854775808}]}`,
			[]string{`a !its id is no whole number from 0 to 9223372036854775807 {"type":"a","id":"5"}`,
				`a !its id is no whole number from 0 to 9223372036854775807 {"type":"a","id":null}`,
				`a !its id is no whole number from 0 to 9223372036854775807 {"type":"a","id":5.0}`,
				`a !its id is no whole number from 0 to 9223372036854775807 {"type":"a","id":-5}`,
				`a !its id is no whole number from 0 to 9223372036854775807 {"type":"a","id":9223372036854775808}`}, false, ""},
		{"no type", head + `{"id":5},{"type":7,"id":6},{"type":null,"id":7}]}`,
			[]string{`5  !its type is missing or no text {"id":5}`,
				`6  !its type is missing or no text {"type":7,"id":6}`,
				`7  !its type is missing or no text {"type":null,"id":7}`}, false, ""},
		{"stored already", head + `{"type":"x","id":3},{"id":4},` + ok5 + "]}", []string{is5}, false, ""},
		{"id goes back", head + ok6 + `,` + ok5 + `,{"type":"b","id":6},{"type":"c","id":7}]}`,
			[]string{is6, "5 a !id goes back: 5 after 6 " + ok5, `6 b !id goes back: 6 after 6 {"type":"b","id":6}`,
				`7 c {"type":"c","id":7}`}, false, ""},
		{"messages", head + `{"type":"message","message":{"id":9007199254740993},"id":5},{"type":"m","message":{"id":3},"id":6}]}`,
			[]string{`5 message m9007199254740993 {"type":"message","message":{"id":9007199254740993},"id":5}`,
				`6 m {"type":"m","message":{"id":3},"id":6}`}, false, ""},
		{"any bytes in strings", head + "{\"type\":\"a\xff\x00\",\"id\":5}]}",
			[]string{"5 a\xff\x00 {\"type\":\"a\xff\x00\",\"id\":5}"}, false, ""},
		{"deep", head + `{"x":` + strings.Repeat("[", 20000) + strings.Repeat("]",
			20000) + `,"type":"a","id":5},` + ok6 + `]}`,
			[]string{`5 a {"x":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `,"type":"a","id":5}`,
				is6}, false, ""},

		{"cut in an event", head + ok5 + `,{"type":"b","id"`, []string{is5}, false, "ends in the middle"},
		{"cut behind an event", head + ok5, []string{is5}, false, "ends in the middle"},
		{"cut behind the list", head + ok5 + "]", []string{is5}, false, "ends in the middle"},
		{"brackets missing in the last", head + ok5 + `,{"type":"m","x":[}],"queue_id":"q"}` + "\n",
			[]string{is5, ` !no JSON: a value was expected at byte 17 {"type":"m","x":[}`}, true, ""},
		{"quote missing before the last", head + ok5 + `,{"type":"m","x":"abc},{"n":1}],"queue_id":"q"}` + "\n",
			[]string{is5, ` !no JSON: a comma or the end of an object or list was expected at byte 24 {"type":"m","x":"abc},{"n":1}`}, true, ""},
		{"cut in a broken event", head + ok5 + `,{"x":nope`,
			[]string{is5, ` !no JSON: true, false or null was expected at byte 6 {"x":nope`}, false,
			"cannot be told apart"},
		{"nothing", "", nil, false, "it is empty"},
		{"HTML", "<html>", nil, false, "200 (HTML) to GET /api/v1/events"},
		{"text", "It works!", nil, false, "200 (no JSON)"},
		{"a list", "[" + ok5 + "]", nil, false, "200 (no JSON)"},
		{"error with 200", `{"result":"error","msg":"no \"way\"","events":[` + ok5 + `]}`, nil, false,
			`"error" to GET /api/v1/events, status 200: "no \"way\""`},
		{"error said behind", `{"events":[` + ok5 + `],"result":"error","msg":"no"}`, nil, false, `"error"`},
		{"no result", `{"events":[` + ok5 + `]}`, []string{is5}, false, "no result"},
		{"result is a number", `{"result":200,"events":[` + ok5 + `]}`, nil, false, `"200"`},
		{"no events", `{"result":"success","msg":""}`, nil, false, "no list of events"},
		{"events are no list", `{"result":"success","events":{"a":1}}`, nil, false, "no list of events"},
		{"text behind the answer", head + ok5 + `]}{"events":[` + ok6 + `]}`, []string{is5}, false, ""},
		{"broken between", head + ok5 + `]"queue_id":"q"}`, []string{is5}, false, "JSON does not allow"},
		{"broken in front", `{"result":"success",,"events":[` + ok5 + `]}`, nil, false, "JSON does not allow"},
	}
	for _, test := range tests {
		for _, step := range []int{1, 3, 1 << 20} {
			t.Run(fmt.Sprintf("%s/%d", test.name, step), func(t *testing.T) {
				a := answerOf(t, &stepReader{strings.NewReader(test.body), step}, Position{"q", 4})
				a.last, a.at.Last = 3, 3
				if test.name == "stored already" {
					a.last, a.at.Last = 4, 4
				}
				events, waited, _, err := readAll(t, a)
				var got []string
				for _, e := range events {
					got = append(got, show(e))
					if e.Size != int64(len(e.Raw)) || e.SHA256 != [32]byte{} {
						t.Errorf("event %s: size %d, digest %x", show(e), e.Size, e.SHA256)
					}
				}
				if !slices.Equal(got, test.want) {
					t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
				}
				if waited != test.waited {
					t.Errorf("waited: %v", waited)
				}
				if test.err == "" && err != nil ||
					test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
					t.Errorf("error %v, want %q", err, test.err)
				}
				if _, ok := errors.AsType[*transientError](err); err != nil && !ok {
					t.Errorf("error %T", err)
				}
			})
		}
	}
}

// TestAnswerCutByTheNetwork: what ends a body otherwise than by its end gives the whole
// events, and then an error.
func TestAnswerCutByTheNetwork(t *testing.T) {
	body := `{"result":"success","events":[{"type":"a","id":1},{"type":"b","id":2},{"type":"c"`
	a := answerOf(t, io.MultiReader(strings.NewReader(body), iotest.ErrReader(io.ErrUnexpectedEOF)), Position{"q", -1})
	events, _, _, err := readAll(t, a)
	if len(events) != 2 || err == nil || !strings.Contains(err.Error(), "unexpected EOF") {
		t.Errorf("%d events, %v", len(events), err)
	}
	// An event that is no JSON and cut besides is not told: whole, it comes again.
	body = `{"result":"success","events":[{"type":"a","id":1},{"type":"c",nope`
	a = answerOf(t, io.MultiReader(strings.NewReader(body), iotest.ErrReader(io.ErrUnexpectedEOF)), Position{"q", -1})
	if events, _, _, err := readAll(t, a); len(events) != 1 || err == nil {
		t.Errorf("%d events, %v", len(events), err)
	}
}

func TestAnswerGzip(t *testing.T) {
	var body bytes.Buffer
	z := gzip.NewWriter(&body)
	io.WriteString(z, `{"result":"success","events":[`)
	for i := range 3000 {
		fmt.Fprintf(z, `{"type":"a","id":%d,"x":"%x"},`, i, sha256.Sum256([]byte{byte(i), byte(i >> 8)}))
	}
	io.WriteString(z, `{"type":"last","id":3000}],"queue_id":"q"}`)
	z.Close()
	open := func(b []byte) *answer {
		a := newAnswer(io.NopCloser(bytes.NewReader(b)), true, func(error) {})
		a.at, a.last, a.asked, a.patience, a.limit = Position{"q", -1}, -1, "GET /api/v1/events", time.Minute, maxEvent
		a.scan.words = new(interned)
		a.scrub = func(s string) string { return s }
		t.Cleanup(a.Close)
		return a
	}
	events, waited, _, err := readAll(t, open(body.Bytes()))
	if len(events) != 3001 || !waited || err != nil {
		t.Errorf("whole: %d events, waited %v, %v", len(events), waited, err)
	}
	for _, cut := range []int{1, 5, body.Len() / 2, body.Len() - 9, body.Len() - 1} {
		events, waited, _, err := readAll(t, open(body.Bytes()[:cut]))
		if err == nil && waited {
			// The text was whole, only gzip's own trailer was not. Its events are good.
			if len(events) != 3001 {
				t.Errorf("cut at %d: %d events", cut, len(events))
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), "unexpected EOF") {
			t.Errorf("cut at %d: %d events, %v", cut, len(events), err)
		}
		for i, e := range events {
			if e.ID != int64(i) || e.Fault != "" {
				t.Fatalf("cut at %d: event %d is %s", cut, i, show(e))
			}
		}
	}
	flipped := bytes.Clone(body.Bytes())
	flipped[0] ^= 1
	if _, _, _, err := readAll(t, open(flipped)); err == nil {
		t.Error("what is no gzip was read")
	}
}

// TestAnswerLargeEvents: events up to the limit are whole, larger ones are cut, with
// size, digest, and what stands at their end.
func TestAnswerLargeEvents(t *testing.T) {
	const limit = 256 << 10
	var body bytes.Buffer
	body.WriteString(`{"result":"success","events":[`)
	var all [][]byte
	add := func(n int, fault bool) {
		pad := strings.Repeat(`"\\[{`, n/5+1)[:n]
		pad = strings.ReplaceAll(strings.ReplaceAll(pad, `"`, `'`), `\`, `/`)
		e := fmt.Sprintf(`{"pad":"%s","message":{"id":%d},"type":"message","op":"o%d","id":%d}`, pad, len(all)+100,
			len(all), len(all))
		if fault {
			e = strings.Replace(e, `"type"`, `nope,"type"`, 1)
		}
		if len(all) > 0 {
			body.WriteByte(',')
		}
		body.WriteString(e)
		all = append(all, []byte(e))
	}
	sizes := []int{10, 100 << 10, limit - 200, limit - 72, limit - 71, limit - 70, limit - 69, limit - 60, limit,
		limit + 5000, 3 << 20, 10, 100, 5 << 20}
	for _, n := range sizes {
		add(n, false)
	}
	add(3<<20, true)
	add(10, false)
	body.WriteString("]}")
	for _, step := range []int{1000, 1 << 20} {
		a := answerOf(t, &stepReader{bytes.NewReader(body.Bytes()), step}, Position{"q", -1})
		a.limit = limit
		events, _, _, err := readAll(t, a)
		if err != nil || len(events) != len(all) {
			t.Fatalf("%d events, %v; want %d", len(events), err, len(all))
		}
		for i, e := range events {
			if bad := i == len(all)-2; bad {
				if !strings.HasPrefix(e.Fault, "no JSON") || e.HasID {
					t.Errorf("event %d: %d %v %q", i, e.ID, e.HasID, e.Fault)
				}
			} else if e.ID != int64(i) || !e.HasID || e.Type != "message" || e.Op != fmt.Sprint("o", i) ||
				e.MessageID != int64(i)+100 || e.Fault != "" {
				t.Errorf("event %d: id %d, type %s, op %s, message %d, fault %q", i, e.ID, e.Type, e.Op,
					e.MessageID, e.Fault)
			}
			if e.Size != int64(len(all[i])) || !bytes.HasPrefix(all[i], e.Raw) {
				t.Errorf("event %d: %d bytes of %d, want %d", i, len(e.Raw), e.Size, len(all[i]))
			}
			whole := len(e.Raw) == len(all[i])
			if whole != (e.SHA256 == [32]byte{}) || !whole && e.SHA256 != sha256.Sum256(all[i]) ||
				whole != (len(all[i]) <= limit) {
				t.Errorf("event %d of %d bytes: %d kept, digest %x", i, len(all[i]), len(e.Raw), e.SHA256[:4])
			}
		}
	}
}

// endless is an answer of n events, made as it is read.
type endless struct {
	n, i int
	rest []byte
}

func (e *endless) Read(p []byte) (int, error) {
	if len(e.rest) == 0 {
		switch {
		case e.i > e.n:
			return 0, io.EOF
		case e.i == e.n:
			e.rest = []byte(`],"queue_id":"q"}`)
		default:
			lead := ","
			if e.i == 0 {
				lead = `{"result":"success","msg":"","events":[`
			}
			e.rest = fmt.Appendf(e.rest[:0],
				`%s{"type":"message","message":{"id":%d,"content":"%s"},"flags":[],"id":%d}`, lead, e.i,
				strings.Repeat("x", 950), e.i)
		}
		e.i++
	}
	n := copy(p, e.rest)
	e.rest = e.rest[n:]
	return n, nil
}

// TestAnswerHuge reads 100 MB and looks at the window only: what an answer takes in
// memory does not depend on its size.
func TestAnswerHuge(t *testing.T) {
	a := answerOf(t, &endless{n: 100_000}, Position{"q", -1})
	next := int64(0)
	for !a.done {
		b, err := a.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range b.Events {
			if e.ID != next || e.MessageID != next {
				t.Fatalf("event %d is %d", next, e.ID)
			}
			next++
		}
		if len(a.buf) > maxWindow || len(b.Events) > maxBatch {
			t.Fatalf("a window of %d bytes, a batch of %d events", len(a.buf), len(b.Events))
		}
		if b.Waited != a.done {
			t.Fatal("waited is told before the end, or not at it")
		}
	}
	if next != 100_000 {
		t.Errorf("%d events", next)
	}
}

// TestWaitedAtTheEnd: that the poll waited is told with the last batch, wherever the
// answer says it.
func TestWaitedAtTheEnd(t *testing.T) {
	var events []string
	for id := range 2500 {
		events = append(events, fmt.Sprintf(`{"type":"a","id":%d}`, id))
	}
	a := answerOf(t, strings.NewReader(`{"result":"success","queue_id":"q","events":[`+strings.Join(events, ",")+`]}`),
		Position{"q", -1})
	batches := 0
	for !a.done {
		b, err := a.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if batches++; b.Waited != a.done {
			t.Errorf("batch %d: waited %v, at the end %v", batches, b.Waited, a.done)
		}
	}
	if batches < 3 {
		t.Errorf("%d batches", batches)
	}
}

// FuzzEvent: an event between two others. If it is JSON it comes out whole, with what
// encoding/json finds in it; if it is not, its neighbours come out all the same.
func FuzzEvent(f *testing.F) {
	for _, raw := range []string{`{"type":"x","op":"y","id":5,"message":{"id":7}}`, `{"id":5,"x":[1}`, `"`, `{"a":"`,
		`{"a":1},{"id":3,"type":"x"`, `{"a":[1`, `{"a":{"b":[{}`, `[1`, ` [1] `, `nope`, `"\`, `{{`} {
		f.Add([]byte(raw), 5)
	}
	const before, after = `{"type":"before","id":1}`, `{"type":"after","id":9223372036854775806}`
	f.Fuzz(func(t *testing.T, raw []byte, step int) {
		body := `{"result":"success","events":[` + before + "," + string(raw) + "," + after + `],"queue_id":"q"}`
		events, waited, _, err := readAll(t,
			answerOf(t, &stepReader{strings.NewReader(body), 1 + step&0xFF}, Position{"q", 0}))
		if len(events) == 0 || string(events[0].Raw) != before || events[0].Fault != "" {
			t.Fatalf("%q: the event before is %+v", raw, events)
		}
		last := events[len(events)-1]
		if !json.Valid(raw) {
			// What leaves several brackets open looks, at the end of all bytes, like an
			// answer that was cut short, and must be taken for it: events must not be
			// looked for inside of an event that may be good.
			if cut := err != nil && strings.Contains(err.Error(), "ends in the middle"); !cut &&
				!bytes.ContainsAny(raw, "]") && (string(last.Raw) != after || !last.HasID || !waited || err != nil) {
				t.Fatalf("%q: the event behind is %s (%s), waited %v, %v", raw, show(last), last.Fault, waited, err)
			}
			return
		}
		id, hasID, typ, hasType, op, _, object := oracle(t, raw)
		if hasID && id == 0 {
			events = slices.Insert(events, 1,
				Event{Raw: raw, ID: 0, HasID: true, Type: typ, Op: op}) // dropped: it was stored
		}
		if err != nil || !waited || len(events) != 3 || string(last.Raw) != after {
			t.Fatalf("%q: %d events, the last %s, waited %v, %v", raw, len(events), show(last), waited, err)
		}
		e, clean := events[1], func(s string) string { return string([]rune(s)) }
		if !bytes.Equal(e.Raw, bytes.Trim(raw, " \t\r\n")) && id != 0 || e.HasID != hasID || hasID && e.ID != id ||
			hasType && clean(e.Type) != typ || clean(e.Op) != op ||
			(e.Fault == "") != (object && hasID && hasType && id != 1 && id < 9223372036854775807) && id > 1 {
			t.Fatalf("%q came out as %s", raw, show(e))
		}
	})
}

// FuzzAnswer: no body makes us panic or hang; what comes out was in it, in order; and
// what encoding/json takes for a list of events comes out whole.
func FuzzAnswer(f *testing.F) {
	for i, line := range captured(f, "events.jsonl.gz") {
		if i%40 == 0 && len(line.Body) < 5000 {
			f.Add([]byte(line.Body), 100)
		}
	}
	f.Add([]byte(`{"events":[{"type":"a","id":1},{"id":2,"x":[1},{"type":"b","id":3},nope,{"a":"b},{"type":"c","id":4}],"result":"success"}`), 3)
	f.Add([]byte(`{"result":"success","events":[],"queue_id":"q"} `), 1)
	f.Fuzz(func(t *testing.T, body []byte, step int) {
		a := answerOf(t, &stepReader{bytes.NewReader(body), 1 + step&0xFFF}, Position{"q", -1})
		a.limit = 8 << 10
		events, _, _, err := readAll(t, a)
		rest := body
		for _, e := range events {
			i := bytes.Index(rest, e.Raw)
			if i < 0 {
				t.Fatalf("%q came out, and is not there", e.Raw)
			}
			rest = rest[i+len(e.Raw):]
		}
		var want struct {
			Result string
			Events []json.RawMessage
		}
		if !json.Valid(body) || json.Unmarshal(body, &want) != nil || want.Result != "success" || err != nil {
			return
		}
		if strings.Count(string(body), `\u`) > 0 || bytes.Count(bytes.ToLower(body), []byte(`"events"`)) != 1 {
			return // keys that encoding/json takes for events, too, or that were written twice
		}
		if len(want.Events) < len(events) {
			t.Fatalf("%d events of %d", len(events), len(want.Events))
		}
	})
}

// TestManyBacklogs: where the windows of other answers have grown, that of this one does
// not, and all of its events come nonetheless. What an answer had is free again when it is
// closed.
func TestManyBacklogs(t *testing.T) {
	const events = 20_000
	var body strings.Builder
	body.WriteString(`{"result":"success","msg":"","events":[`)
	for i := range events {
		if i > 0 {
			body.WriteByte(',')
		}
		fmt.Fprintf(&body, `{"type":"a","id":%d,"text":"%s"}`, i, strings.Repeat("x", 500))
	}
	body.WriteString(`],"queue_id":"q"}`)
	largest := func() (window, batches int) {
		t.Helper()
		a := answerOf(t, strings.NewReader(body.String()), Position{"q", -1})
		next := int64(0)
		for !a.done {
			b, err := a.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range b.Events {
				if e.ID != next || e.Fault != "" {
					t.Fatalf("event %d %q, want %d", e.ID, e.Fault, next)
				}
				next++
			}
			window, batches = max(window, len(a.buf)), batches+1
		}
		if next != events {
			t.Errorf("%d events, want %d", next, events)
		}
		a.Close()
		return window, batches
	}
	before := windows.Load()
	alone, few := largest()
	if n := windows.Load(); n != before {
		t.Errorf("%d bytes are not given back", n-before)
	}
	windows.Add(mostWindows)
	defer windows.Add(-mostWindows)
	among, many := largest()
	if alone <= quickWindow || among != quickWindow || few >= many {
		t.Errorf("alone %d bytes and %d batches, among others %d and %d", alone, few, among, many)
	}
}

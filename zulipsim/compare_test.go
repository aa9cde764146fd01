package zulipsim

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// compare holds an answer against the recorded one.
func (r *replay) compare(x *exchange, rec *httptest.ResponseRecorder, ended float64) {
	body, err := plain(rec)
	if err != nil {
		r.t.Errorf("%s:%d: %v", r.sc.file, x.no, err)
	}
	var theirs, ours struct {
		Queue string `json:"queue_id"`
	}
	if x.Path == "/api/v1/register" || strings.HasPrefix(x.Path, "/api/v1/register?") {
		json.Unmarshal([]byte(x.Body), &theirs)
		json.Unmarshal(body, &ours)
		r.mu.Lock()
		r.queues[theirs.Queue] = ours.Queue
		r.mu.Unlock()
	}
	if why := notImitated[r.sc.file][x.no]; why != "" {
		r.mu.Lock()
		r.skipped++
		r.mu.Unlock()
		return
	}
	r.mu.Lock()
	r.compared++
	for t, o := range r.queues {
		if o != "" {
			body = bytes.ReplaceAll(body, []byte(o), []byte(t))
		}
	}
	r.mu.Unlock()
	var wrong []string
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if rec.Code != x.Status {
		complain("status %d, Zulip %d", rec.Code, x.Status)
	}
	r.compareHeaders(x, rec, complain)
	if strings.HasPrefix(x.Headers["Content-Type"], "application/json") || strings.HasPrefix(x.Body, "{") {
		if strings.HasSuffix(string(body), "\n") != strings.HasSuffix(x.Body, "\n") {
			complain("newline at the end")
		}
		theirs, ours := parse(r.t, []byte(x.Body)), parse(r.t, body)
		if shapeOnly[r.sc.file][x.no] != "" {
			ours.forget()
			theirs.forget()
		}
		compareJSON("", ours, theirs, complain)
	}
	if x.waited() || x.Status == 502 && x.Ms > 200 {
		if math.Abs(ended-x.end()) > 0.04 {
			complain("the poll ended at %.3f s, Zulip's at %.3f s", ended, x.end())
		}
	}
	if len(wrong) > 0 {
		r.t.Errorf("%s:%d: %s %s %v [%s]\n  %s\n  we:    %.600s\n  Zulip: %.600s", r.sc.file, x.no, x.Method, x.Path,
			x.Params, x.Note,
			strings.Join(wrong, "\n  "), body, x.Body)
	}
}

// plain returns an answer's body, unpacked.
func plain(rec *httptest.ResponseRecorder) ([]byte, error) {
	if rec.Header().Get("Content-Encoding") != "gzip" {
		return rec.Body.Bytes(), nil
	}
	z, err := gzip.NewReader(rec.Body)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// compareHeaders compares the headers that were recorded, spelling included.
func (r *replay) compareHeaders(x *exchange, rec *httptest.ResponseRecorder, complain func(string, ...any)) {
	for k, want := range x.Headers {
		switch k {
		case "Connection", "Content-Length", "Transfer-Encoding":
			continue // of the transport; how long a body is depends on names and ids
		}
		list, ok := rec.Header()[k]
		if !ok {
			complain("no header %s, Zulip %s", k, want)
			continue
		}
		got := list[0]
		switch {
		case strings.HasSuffix(k, "-Reset"):
			g, _ := strconv.ParseInt(got, 10, 64)
			w, _ := strconv.ParseInt(want, 10, 64)
			if g < w-1 || g > w+1 {
				complain("%s: %s, Zulip %s", k, got, want)
			}
		case k == "Retry-After":
			g, _ := strconv.ParseFloat(got, 64)
			w, _ := strconv.ParseFloat(want, 64)
			if math.Abs(g-w) > 0.03 {
				complain("%s: %s, Zulip %s", k, got, want)
			}
		case strings.HasSuffix(k, "-Remaining") && got != want:
			g, _ := strconv.Atoi(got)
			w, _ := strconv.Atoi(want)
			if strings.HasPrefix(r.sc.file, "rate-limit") {
				complain("%s: %s, Zulip %s", k, got, want)
				continue
			}
			// Requests that were not kept have used the account's budget before this one,
			// and leave the window some time later.
			a, tornado := r.keys[x.Who], strings.HasPrefix(k, "X-Ratelimit")
			r.s.mu.Lock()
			if g > w {
				for range g - w {
					r.s.limit(a, tornado)
				}
				r.unkept[a] += g - w
			} else if !tornado && w-g <= r.unkept[a] {
				r.s.django[a.ID] = r.s.django[a.ID][w-g:]
				r.unkept[a] -= w - g
			} else {
				complain("%s: %s, Zulip %s", k, got, want)
			}
			r.s.mu.Unlock()
		case got != want:
			complain("%s: %s, Zulip %s", k, got, want)
		}
	}
	for k := range rec.Header() {
		if _, ok := x.Headers[k]; !ok && k != "Content-Length" {
			complain("header %s that Zulip does not send", k)
		}
	}
}

// value is JSON with the order of its members.
type value struct {
	keys []string
	obj  map[string]value
	list []value
	leaf any
	kind string
}

// forget leaves of a value what shape it has.
func (v *value) forget() {
	for k, m := range v.obj {
		m.forget()
		v.obj[k] = m
	}
	v.list, v.leaf = nil, nil
}

func parse(t *testing.T, text []byte) value {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	v, err := parseValue(d)
	if err != nil {
		t.Errorf("no JSON: %v: %.200s", err, text)
	}
	return v
}

func parseValue(d *json.Decoder) (value, error) {
	tok, err := d.Token()
	if err != nil {
		return value{}, err
	}
	switch tok {
	case json.Delim('{'):
		v := value{kind: "object", obj: make(map[string]value)}
		for d.More() {
			k, err := d.Token()
			if err != nil {
				return v, err
			}
			key := k.(string)
			if v.obj[key], err = parseValue(d); err != nil {
				return v, err
			}
			v.keys = append(v.keys, key)
		}
		_, err = d.Token()
		return v, err
	case json.Delim('['):
		v := value{kind: "list"}
		for d.More() {
			e, err := parseValue(d)
			if err != nil {
				return v, err
			}
			v.list = append(v.list, e)
		}
		_, err = d.Token()
		return v, err
	}
	return value{kind: fmt.Sprintf("%T", tok), leaf: tok}, nil
}

// compareJSON compares two values: members and their order, and what they are.
func compareJSON(path string, got, want value, complain func(string, ...any)) {
	if _, ok := notCompared[path]; ok {
		if got.kind != want.kind && got.leaf != nil && want.leaf != nil {
			complain("%s is %v, Zulip's is %v", path, got.leaf, want.leaf)
		}
		return
	}
	if got.kind != want.kind {
		complain("%s is a %s, Zulip's a %s", path, got.kind, want.kind)
		return
	}
	switch got.kind {
	case "object":
		if !slices.Equal(got.keys, want.keys) {
			complain("%s has the members %v, Zulip's %v", path, got.keys, want.keys)
		}
		for _, k := range got.keys {
			if w, ok := want.obj[k]; ok {
				compareJSON(strings.TrimPrefix(path+"."+k, "."), got.obj[k], w, complain)
			}
		}
	case "list":
		if len(got.list) != len(want.list) {
			complain("%s has %d elements, Zulip's %d", path, len(got.list), len(want.list))
			return
		}
		for i := range got.list {
			compareJSON(path, got.list[i], want.list[i], complain)
		}
	default:
		if got.leaf == want.leaf {
			return
		}
		if strings.HasSuffix(path, "timestamp") || path == "retry-after" || strings.HasSuffix(path, "last_updated") {
			g, _ := got.leaf.(json.Number).Float64()
			w, _ := want.leaf.(json.Number).Float64()
			if math.Abs(g-w) <= 1 {
				return
			}
		}
		complain("%s is %v, Zulip's %v", path, got.leaf, want.leaf)
	}
}

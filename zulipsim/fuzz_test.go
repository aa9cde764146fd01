package zulipsim

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// FuzzRequest throws any request at a small organization: it must be answered, with JSON
// where Zulip has JSON, and never panic.
func FuzzRequest(f *testing.F) {
	for _, seed := range [][4]string{
		{"POST", "/register", "fetch_event_types=[]&narrow=[[\"is\",\"dm\"]]&client_capabilities={\"notification_settings_null\":true}", "key"},
		{"GET", "/events", "queue_id=x&last_event_id=-1&dont_block=true", "key"},
		{"GET", "/events", "dont_block=true", "key"},
		{"DELETE", "/events", "queue_id=1", "key"},
		{"GET", "/messages", "anchor=newest&num_before=5&num_after=0&narrow=[{\"operator\":\"channels\",\"operand\":\"public\"}]", "key"},
		{"GET", "/messages", "message_ids=[1,2]&apply_markdown=false", "key"},
		{"GET", "/messages", "anchor=0&num_after=3&narrow=[[\"dm\",[1,2]],{\"operator\":\"is\",\"operand\":\"unread\",\"negated\":true}]", "key"},
		{"POST", "/messages", "type=direct&to=[9]&content=x", "key"},
		{"PATCH", "/messages/1", "topic=x&propagate_mode=change_all&stream_id=4", "key"},
		{"POST", "/messages/1/reactions", "emoji_name=tada", "key"},
		{"POST", "/messages/flags", "messages=[1]&op=remove&flag=read", "key"},
		{"POST", "/users/me/subscriptions", "subscriptions=[{\"name\":\"new\"}]&principals=[9,\"x\"]", "key"},
		{"POST", "/typing", "op=start&type=stream&stream_id=4&topic=", "key"},
		{"GET", "/users/99999999999999999999", "", "key"},
		{"GET", "/server_settings", "", ""},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3])
	}
	f.Fuzz(func(t *testing.T, method, path, form, auth string) {
		s := &Server{Heartbeat: func() time.Duration { return time.Millisecond }}
		a := s.Account("bridge-bot@example.com")
		s.say("one")
		s.lock()
		s.newQueue(a, Options{}, 0)
		s.mu.Unlock()
		req, err := http.NewRequest(method, "http://zulip.test/api/v1", strings.NewReader(form))
		if err != nil {
			return // no method
		}
		req.URL.Path += path
		req.URL.RawQuery = form
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.SetBasicAuth(a.Email, strings.Replace(auth, "key", a.Key, 1))
		rec := httptest.NewRecorder()
		s.ServeHTTP(rec, req)
		if rec.Code < 200 || rec.Code > 500 {
			t.Errorf("status %d", rec.Code)
		}
		s.say("two")
		s.Queues()
	})
}

package poller

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
)

// benchBody is an answer of n events of about 500 bytes, as a real server words them.
func benchBody(n int) []byte {
	var b bytes.Buffer
	b.WriteString(`{"result":"success","msg":"","events":[`)
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"type":"message","message":{"id":%d,"sender_id":10,"content":"Shall we look at the figures of \"%d\" again?\nThey differ by a little.",`+
			`"recipient_id":21,"timestamp":1795571993,"client":"website","is_me_message":false,"topic_links":[],"submessages":[],"sender_full_name":"Ada",`+
			`"sender_email":"user10@example.com","sender_realm_str":"acme","display_recipient":"general","type":"stream","stream_id":5,"reactions":[],`+
			`"avatar_url":null,"subject":"figures","content_type":"text/x-markdown"},"flags":[],"id":%d}`, 1000+i, i, i)
	}
	b.WriteString(`],"queue_id":"e0c4639e-70a3-4b84-b1be-d43524763ec6"}`)
	return b.Bytes()
}

// BenchmarkAnswer decodes an answer of 20,000 events: by us, and as far as the standard
// library can do the same.
func BenchmarkAnswer(b *testing.B) {
	const n = 20_000
	body := benchBody(n)
	b.Logf("%d bytes an event", len(body)/n)

	b.Run("poller", func(b *testing.B) {
		b.SetBytes(int64(len(body)))
		b.ReportAllocs()
		for b.Loop() {
			a := answerOf(b, bytes.NewReader(body), Position{"q", -1})
			got := 0
			for !a.done {
				batch, err := a.Next(context.Background())
				if err != nil {
					b.Fatal(err)
				}
				got += len(batch.Events)
			}
			a.Close()
			if got != n {
				b.Fatal(got)
			}
		}
	})
	// The scanner by itself.
	b.Run("scanner", func(b *testing.B) {
		b.SetBytes(int64(len(body)))
		s := scanner{words: new(interned)}
		for b.Loop() {
			s.reset()
			if _, err := s.scan(body); err != nil || s.state != scanDone {
				b.Fatal(err)
			}
		}
	})
	// Every event's bytes, and nothing of what is in them.
	b.Run("encoding/json RawMessage", func(b *testing.B) {
		b.SetBytes(int64(len(body)))
		b.ReportAllocs()
		for b.Loop() {
			d := json.NewDecoder(bytes.NewReader(body))
			for range 7 { // {"result":"success","msg":"","events":[
				if _, err := d.Token(); err != nil {
					b.Fatal(err)
				}
			}
			var got int
			for d.More() {
				var raw json.RawMessage
				if err := d.Decode(&raw); err != nil {
					b.Fatal(err)
				}
				got++
			}
			if got != n {
				b.Fatal(got)
			}
		}
	})
	b.Run("encoding/json Token", func(b *testing.B) {
		b.SetBytes(int64(len(body)))
		for b.Loop() {
			d := json.NewDecoder(bytes.NewReader(body))
			for {
				if _, err := d.Token(); err == io.EOF {
					break
				} else if err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("encoding/json Valid", func(b *testing.B) {
		b.SetBytes(int64(len(body)))
		for b.Loop() {
			if !json.Valid(body) {
				b.Fatal("invalid")
			}
		}
	})
}

// BenchmarkLongText decodes events that are mostly text.
func BenchmarkLongText(b *testing.B) {
	e := `{"type":"message","message":{"id":1,"content":"` + strings.Repeat("What a long text, it says. ",
		400) + `"},"id":%d}`
	body := []byte(`{"result":"success","events":[`)
	for i := range 2000 {
		body = fmt.Appendf(body, e+",", i)
	}
	body = append(body[:len(body)-1], "]}"...)
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		a := answerOf(b, bytes.NewReader(body), Position{"q", -1})
		for !a.done {
			if _, err := a.Next(context.Background()); err != nil {
				b.Fatal(err)
			}
		}
		a.Close()
	}
}

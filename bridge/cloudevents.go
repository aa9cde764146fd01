package bridge

import (
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"zulip-nats/events"
	"zulip-nats/stream"
)

// CloudEvents in the binary mode of their NATS binding: attributes are headers with the
// prefix ce-, the body stays as it is (cloudevents/spec,
// cloudevents/bindings/nats-protocol-binding.md, 3.1). The content type is
// ce-datacontenttype: that binding knows no plain content-type but for the structured
// mode, other than that of HTTP. Headers of NATS count upper and lower case as different,
// so they are spelt as there, in lower case.

// year10000 is when RFC 3339 ends, which has four digits for a year.
const year10000 = 253402300800

// cloudHeaders are those of a message that has these headers already. sent is when it
// happened, in seconds of Zulip's clock, 0 if nothing says so: then it is when we got it.
func (b *Bridge) cloudHeaders(has []stream.Header, typ string, sent int64) []stream.Header {
	head := make(map[string][]string, len(has))
	for _, h := range has {
		head[h.Key] = []string{h.Value}
	}
	at := time.Now()
	if sent > 0 && sent < year10000 {
		at = time.Unix(sent, 0)
	}
	headers := []stream.Header{
		{Key: events.HeaderCloudVersion, Value: "1.0"},
		{Key: events.HeaderCloudID, Value: cloudValue(events.Key(head))},
		{Key: events.HeaderCloudSource, Value: cloudValue(uri(b.cfg.Site))},
		{Key: events.HeaderCloudType, Value: cloudValue(typ)},
		{Key: events.HeaderCloudTime, Value: at.UTC().Format("2006-01-02T15:04:05.999Z")},
		{Key: events.HeaderCloudContentType, Value: "application/json"},
	}
	if id := head[events.HeaderMessageID]; id != nil {
		headers = append(headers, stream.Header{Key: events.HeaderCloudSubject, Value: "message/" + id[0]})
	}
	return headers
}

// cloudDataRef says where the body of a stub is, by the extension dataref (cloudevents/spec,
// cloudevents/extensions/dataref.md): a relative reference, the object store and the
// object's name.
func (b *Bridge) cloudDataRef(object string) stream.Header {
	parts := strings.Split("zulip_"+b.realm.String()+"/"+object, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	return stream.Header{Key: events.HeaderCloudDataRef, Value: cloudValue(strings.Join(parts, "/"))}
}

// joined is a type with its op, cut so that no header grows with what comes from outside.
func joined(typ, op string) string {
	if op == "" {
		return typ
	}
	most := headerValueLimit
	for len(op) > most && !utf8.RuneStart(op[most]) {
		most--
	}
	return typ + "." + op[:min(most, len(op))]
}

// uri is an address as RFC 3986 has it, in ASCII.
func uri(site string) string {
	if u, err := url.Parse(site); err == nil {
		return u.String()
	}
	return url.PathEscape(site)
}

// cloudValue is a text as the value of a header, by 3.1.3.2 of the binding: blanks, double
// quotes, percent signs and all that is no printable ASCII are percent-encoded, as UTF-8.
// What no attribute may hold (control characters, what is no character) is replaced.
func cloudValue(s string) string {
	var b strings.Builder
	for _, r := range s { // what is no UTF-8 comes as U+FFFD
		switch {
		case r > ' ' && r <= '~' && r != '"' && r != '%':
			b.WriteRune(r)
			continue
		case r < ' ', r >= 0x7f && r <= 0x9f, r&0xfffe == 0xfffe, r >= 0xfdd0 && r <= 0xfdef:
			r = utf8.RuneError
		}
		for _, c := range []byte(string(r)) {
			const hex = "0123456789ABCDEF"
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}

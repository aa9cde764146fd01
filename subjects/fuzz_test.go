package subjects

import (
	"net/url"
	"strings"
	"testing"
)

// legal says what a consumer may rely on, character by character and not by the code
// under test: tokens of the alphabet, as many as said, and nothing that NATS gives a
// meaning to.
func legal(t *testing.T, subject string, tokens int) {
	t.Helper()
	if got := strings.Count(subject, ".") + 1; got != tokens {
		t.Fatalf("%q has %d tokens, not %d", subject, got, tokens)
	}
	for token := range strings.SplitSeq(subject, ".") {
		if token == "" {
			t.Fatalf("%q has an empty token", subject)
		}
		if rest := strings.Trim(token, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"); rest != "" {
			t.Fatalf("%q has %q in a token", subject, rest)
		}
	}
}

func FuzzEvent(f *testing.F) {
	for _, realm := range []string{"chat", "127-0-0-1", "a.b >", ""} {
		f.Add(realm, "message", "heartbeat")
		f.Add(realm, "bridge", "bridge.gap")
		f.Add(realm, "*", ">")
		f.Add(realm, "mess\x00age", "r\u00e9action")
		f.Add(realm, strings.Repeat("t", 128), strings.Repeat("t", 129))
	}
	f.Fuzz(func(t *testing.T, realm, typ, other string) {
		r, err := ParseRealm(realm)
		if err != nil {
			return
		}
		if r.String() != realm {
			t.Fatalf("realm %q became %q", realm, r)
		}
		legal(t, r.Record(Gap), 4)
		legal(t, strings.TrimSuffix(r.All(), ".>"), 2)

		subject, err := r.Event(typ, 0)
		if err != nil {
			legalReason(t, err)
			return
		}
		legal(t, subject, 3)
		if !strings.HasPrefix(subject, "zulip."+realm+".") ||
			strings.HasPrefix(subject+".", "zulip."+realm+".bridge.") {
			t.Fatalf("type %q of realm %q landed on %q", typ, realm, subject)
		}
		for at, tokens := range map[Place]int{Direct: 4, Nowhere: 4, 3: 5} {
			placed, err := r.By(ByPlace).Event(typ, at)
			if err != nil {
				t.Fatal(err)
			}
			legal(t, placed, tokens)
			if !Covers(r.By(ByPlace).Type(typ), placed) || Covers(r.Records(), placed) {
				t.Fatalf("%q is not where type %q is", placed, typ)
			}
		}
		if second, err := r.Event(other, 0); err == nil && (second == subject) != (typ == other) {
			t.Fatalf("types %q and %q have subjects %q and %q", typ, other, subject, second)
		}
	})
}

// legalReason checks that a reason can be put in a header and in a log line whatever the
// type was.
func legalReason(t *testing.T, err error) {
	t.Helper()
	reason := err.Error()
	if reason == "" || len(reason) > 400 || reason != strings.TrimSpace(reason) {
		t.Fatalf("the reason is %q", reason)
	}
	for _, c := range []byte(reason) {
		if c < ' ' || c > '~' {
			t.Fatalf("the reason %q has a byte %#x", reason, c)
		}
	}
}

func FuzzRealmFromSite(f *testing.F) {
	for _, site := range []string{
		"https://acme.zulipchat.com", "www.example.org:443", "http://[::1]:9991/api", "127.0.0.1", "localhost:9991",
		"https://u:p@h.org",
		"https://z\u00fclip.example.org", "https://a.b\x00", "://", "https://www.", "[fe80::1%25*]", "https://..",
		"HTTP://A>B.c",
	} {
		f.Add(site)
	}
	f.Fuzz(func(t *testing.T, site string) {
		r, err := RealmFromSite(site)
		if err != nil {
			legalReason(t, err)
			return
		}
		if again, err := ParseRealm(r.String()); err != nil || again != r {
			t.Fatalf("%q gave %q, which is no realm's name: %v", site, r, err)
		}
		// The name is a matter of the host alone.
		if u, err := url.Parse(site); err == nil && u.Scheme != "" && u.Host != "" && u.User == nil {
			plain, err := RealmFromSite("https://" + u.Host + "/elsewhere")
			if err == nil && plain != r {
				t.Fatalf("%q gave %q, its host alone gives %q", site, r, plain)
			}
		}
	})
}

package poller

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// certificate makes a self-signed client certificate; the two PEM texts are its own and
// its key's.
func certificate(t *testing.T, name string) (cert, key string) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotAfter:    time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &priv.PublicKey, priv)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
}

// dropIdle closes the idle connections of a transport that is shared.
func dropIdle(c *Client) {
	if t, ok := c.transport.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
}

func TestTransport(t *testing.T) {
	t.Run("HTTP 1", func(t *testing.T) { testTransport(t, "HTTP/1.1", "http/1.1") })
	t.Run("HTTP 2", func(t *testing.T) { testTransport(t, "HTTP/2.0", "h2") })
}

func testTransport(t *testing.T, want, protocol string) {
	var who string
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who = ""
		if len(r.TLS.PeerCertificates) > 0 {
			who = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		if r.Proto != want {
			t.Errorf("spoke %s, want %s", r.Proto, want)
		}
		io.WriteString(w, `{"result":"success","msg":"","queue_id":"q","last_event_id":-1}`)
	}))
	srv.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, NextProtos: []string{protocol}}
	srv.EnableHTTP2 = protocol == "h2"
	srv.StartTLS()
	defer srv.Close()
	dir := t.TempDir()
	bundle := write(t, filepath.Join(dir, "ca.pem"),
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})))
	cert, key := certificate(t, "first")
	certFile, keyFile := write(t, filepath.Join(dir, "cert.pem"), cert), write(t, filepath.Join(dir, "key.pem"), key)
	both := write(t, filepath.Join(dir, "both.pem"), cert+key)

	ask := func(a Account) error {
		a.Email, a.Key, a.Site = "bot@example.com", testKey, srv.URL
		c := &Client{Account: func() (Account, error) { return a, nil }}
		defer dropIdle(c)
		_, err := c.register(t.Context(), DefaultOptions(), false, nil)
		return err
	}
	if err := ask(Account{}); err == nil || !strings.Contains(err.Error(), "cert_bundle") ||
		!strings.Contains(err.Error(), srv.URL) {
		t.Errorf("an unknown authority gives %v", err)
	}
	if err := ask(Account{CertBundle: bundle}); err != nil || who != "" {
		t.Errorf("with its certificate: %v, as %q", err, who)
	}
	if err := ask(Account{Insecure: true}); err != nil {
		t.Errorf("insecure: %v", err)
	}
	if err := ask(Account{CertBundle: bundle, ClientCert: certFile, ClientCertKey: keyFile}); err != nil ||
		who != "first" {
		t.Errorf("with a client certificate: %v, as %q", err, who)
	}
	if err := ask(Account{CertBundle: bundle, ClientCert: both}); err != nil || who != "first" {
		t.Errorf("with both in one file: %v, as %q", err, who)
	}
	for name, a := range map[string]Account{
		"no bundle": {CertBundle: "/not/there"}, "empty bundle": {CertBundle: keyFile},
		"no certificate": {ClientCert: keyFile},
		"no key":         {ClientCert: certFile},
	} {
		if _, ok := errors.AsType[*ConfigError](ask(a)); !ok {
			t.Errorf("%s is taken", name)
		}
	}

	// A certificate that is renewed in place is used without a new start.
	account := Account{Email: "bot@example.com", Key: testKey, Site: srv.URL, CertBundle: bundle, ClientCert: certFile,
		ClientCertKey: keyFile}
	c := &Client{Account: func() (Account, error) { return account, nil }}
	if _, err := c.register(t.Context(), DefaultOptions(), false, nil); err != nil || who != "first" {
		t.Errorf("%v, as %q", err, who)
	}
	cert, key = certificate(t, "second")
	write(t, certFile, cert)
	write(t, keyFile, key)
	dropIdle(c)
	if _, err := c.register(t.Context(), DefaultOptions(), false, nil); err != nil || who != "second" {
		t.Errorf("%v, as %q", err, who)
	}
	os.Remove(certFile)
	dropIdle(c)
	if _, err := c.register(t.Context(), DefaultOptions(), false, nil); err == nil ||
		!strings.Contains(err.Error(), "client_cert") {
		t.Errorf("a certificate that is gone gives %v", err)
	} else if _, ok := errors.AsType[*transientError](err); !ok {
		t.Errorf("%T", err)
	}
	dropIdle(c)
}

// TestConnectionReused: answers read to their end leave their connection for the next
// request, gzip or not.
func TestConnectionReused(t *testing.T) {
	var from []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from = append(from, r.RemoteAddr)
		io.WriteString(w, `{"result":"success","msg":"","events":[{"type":"a","id":1}],"queue_id":"q"}`+"\n")
	}))
	defer srv.Close()
	c := &Client{Account: func() (Account,
		error) {
		return Account{Email: "bot@example.com", Key: testKey, Site: srv.URL}, nil
	}}
	defer dropIdle(c)
	for range 5 {
		a, err := c.events(t.Context(), Position{"q", -1}, false, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if events, _, _, err := readAll(t, a); err != nil || len(events) != 1 {
			t.Fatalf("%d events, %v", len(events), err)
		}
		a.Close()
	}
	// net/http closes a connection whose own goroutine had no turn within 50 ms, as may
	// happen once on a busy machine.
	if distinct := slices.Compact(slices.Clone(from)); len(distinct) > 2 {
		t.Errorf("connections %v", from)
	}
}

// TestKeyNeverTold: a server that sends the key back does not get it into our texts.
func TestKeyNeverTold(t *testing.T) {
	for _, status := range []int{200, 400, 401, 403, 429, 500} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, key, _ := r.BasicAuth()
			w.WriteHeader(status)
			io.WriteString(w, `{"result":"error","msg":"what is `+key+`?","code":"ODD"}`)
		}))
		c := &Client{Account: func() (Account,
			error) {
			return Account{Email: "bot@example.com", Key: testKey, Site: srv.URL}, nil
		}}
		_, err := c.register(t.Context(), DefaultOptions(), false, nil)
		if err == nil || strings.Contains(err.Error(), testKey) {
			t.Errorf("%d: %v", status, err)
		}
		a, err := c.events(t.Context(), Position{"q", -1}, false, time.Minute)
		if err == nil {
			_, err = a.Next(t.Context())
			a.Close()
		}
		if err == nil || strings.Contains(err.Error(), testKey) {
			t.Errorf("%d: %v", status, err)
		}
		dropIdle(c)
		srv.Close()
	}
}

// canned answers every request with the same.
type canned struct {
	status int
	header http.Header
	body   string
}

func (c canned) RoundTrip(r *http.Request) (*http.Response, error) {
	h := c.header
	if h == nil {
		h = http.Header{}
	}
	return &http.Response{StatusCode: c.status, Header: h, Body: io.NopCloser(strings.NewReader(c.body)),
		Request: r}, nil
}

// TestErrorsToldApart: what Zulip, and what stands in front of it, may answer, by status
// and code. The bodies are those of a real server and of the API description.
func TestErrorsToldApart(t *testing.T) {
	html := http.Header{"Content-Type": {"text/html; charset=utf-8"}}
	for _, test := range []struct {
		canned
		want string
	}{
		{canned{401, nil, `{"result":"error","msg":"Invalid API key","code":"UNAUTHORIZED"}`}, "auth Invalid API key"},
		{canned{401, nil, `{"code":"USER_DEACTIVATED","msg":"Account is deactivated","result":"error"}`},
			"auth Account is deactivated"},
		{canned{403, nil, `{"code":"REALM_DEACTIVATED","msg":"This organization is deactivated","result":"error"}`},
			"auth This organization is deactivated"},
		{canned{400, nil, `{"code":"INVALID_API_KEY","msg":"Invalid API key","result":"error"}`},
			"auth Invalid API key"},
		{canned{401, html, "<html>"}, "auth Unauthorized"},
		{canned{400, nil, `{"code":"BAD_EVENT_QUEUE_ID","msg":"Bad event queue ID: fb67","queue_id":"fb67","result":"error"}`}, "bad queue"},
		{canned{400, nil, `{"result":"error","msg":"An event newer than 7 has already been pruned!","code":"BAD_REQUEST"}`}, "pruned"},
		{canned{400, nil, `{"result":"error","msg":"Event 12 was not in this queue","code":"BAD_REQUEST"}`},
			"not in queue"},
		{canned{400, nil, `{"result":"error","msg":"Missing 'queue_id' argument","code":"BAD_REQUEST"}`}, "refused"},
		{canned{400, nil, `{"result":"error","msg":"Invalid narrow operator: unknown","code":"BAD_NARROW","desc":"unknown"}`}, "refused"},
		{canned{400, html, "<h1>Bad Request (400)</h1>"}, "Zulip answers 400 (HTML) to GET /api/v1/events"},
		{canned{400, nil, `{"message":"not Zulip's"}`}, "Zulip answers 400 (no content type) to GET /api/v1/events"},
		{canned{404, nil, `{"result":"error","msg":"Invalid subdomain","code":"NONEXISTENT_SUBDOMAIN"}`},
			`Zulip answers 404 (no content type) to GET /api/v1/events: "Invalid subdomain"; look whether the site https://x is right`},
		{canned{405, html, `{"result":"error","msg":"Method Not Allowed","allowed_methods":["DELETE","GET"]}`},
			`Zulip answers 405 (HTML) to GET /api/v1/events: "Method Not Allowed"`},
		{canned{429, nil, `{"code":"RATE_LIMIT_HIT","msg":"API usage exceeded rate limit","result":"error","retry-after":28.706807374954224}`}, "wait 28.706807375s"},
		{canned{429, http.Header{"Retry-After": {"0.25"}}, "<html>"}, "wait 250ms"},
		{canned{429, nil, `{"result":"error","retry-after":null}`}, "wait 1s"},
		{canned{500, nil, `{"result":"error","msg":"Internal server error"}`},
			`Zulip answers 500 (no content type) to GET /api/v1/events: "Internal server error"`},
		{canned{502, html, "<html>"}, "Zulip answers 502 (HTML) to GET /api/v1/events"},
		{canned{503, nil, ""}, "Zulip answers 503 (no content type) to GET /api/v1/events"},
		{canned{302, http.Header{"Location": {"https://evil.example.com/x?key=1"}}, ""},
			`Zulip answers 302 to GET /api/v1/events, a redirect to "https://evil.example.com"; the key is not sent there: look whether the site ` +
				`https://x is right, or write site=https://evil.example.com in the zuliprc if that is the server`},
		{canned{302, http.Header{"Location": {"http://u:p@evil.example.com:8080/x?key=1"}}, ""},
			`Zulip answers 302 to GET /api/v1/events, a redirect to "http://evil.example.com:8080"; the key is not sent there: look whether the site ` +
				`https://x is right, or write site=http://evil.example.com:8080 in the zuliprc if that is the server`},
		{canned{302, http.Header{"Location": {"/login/?next=/"}}, ""},
			`Zulip answers 302 to GET /api/v1/events, a redirect to another page of "https://x"; it is not followed: look whether the site https://x is right`},
		{canned{302, http.Header{"Location": {"about:blank"}}, ""},
			"Zulip answers 302 to GET /api/v1/events, a redirect to an odd address; the key is not sent there: look " +
				"whether the site https://x is right"},
		{canned{308, nil, ""}, "Zulip answers 308 to GET /api/v1/events, a redirect to nowhere; the key is not sent " +
			"there: look whether the site https://x is right"},
		{canned{200, http.Header{"Content-Encoding": {"br"}}, ""},
			`Zulip answers GET /api/v1/events in an encoding that was not asked for, "br"`},
	} {
		c := &Client{Transport: test.canned,
			Account: func() (Account, error) { return Account{Email: "e@x", Key: testKey, Site: "https://x"}, nil }}
		_, err := c.events(t.Context(), Position{"q", 1}, false, time.Minute)
		got := ""
		switch err := err.(type) {
		case *AuthError:
			got = "auth " + err.Msg
		case *RefusedError:
			got = err.Kind.String()
		case *transientError:
			if got = err.text; err.limited {
				got = "wait " + err.wait.String()
			}
		}
		if got != test.want {
			t.Errorf("%d %s\ngives %s (%T)\nwant  %s", test.status, test.body, got, err, test.want)
		}
	}
}

// http where https belongs, and the other way round: the sentence says which is which,
// and what to write.
func TestWrongScheme(t *testing.T) {
	says := func(transport http.RoundTripper, site string) string {
		t.Helper()
		c := &Client{Transport: transport,
			Account: func() (Account, error) { return Account{Email: "e@x", Key: testKey, Site: site}, nil }}
		_, err := c.events(t.Context(), Position{"q", 1}, false, time.Minute)
		if err == nil {
			t.Fatal("it works")
		}
		return err.Error()
	}
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("hello")) })
	plain, secure := httptest.NewServer(page), httptest.NewTLSServer(page)
	defer plain.Close()
	defer secure.Close()
	if got := says(nil, strings.Replace(secure.URL, "https", "http", 1)); !strings.Contains(got,
		"write site="+secure.URL+" in the zuliprc") {
		t.Error(got)
	}
	if got := says(nil, strings.Replace(plain.URL, "http", "https", 1)); !strings.Contains(got,
		"it speaks http there, without TLS") {
		t.Error(got)
	}
	// A server that says it in the words of TLS: an alert.
	alert, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer alert.Close()
	go func() {
		if c, err := alert.Accept(); err == nil {
			c.Read(make([]byte, 1000)) // the request first: an answer to nothing is another error of net/http
			c.Write([]byte("\x15\x03\x01\x00\x02\x02\x0a"))
			c.Close()
		}
	}()
	if got := says(nil, "http://"+alert.Addr().String()); !strings.Contains(got, "it speaks https there") {
		t.Error(got)
	}
	// nginx's and Apache's own pages.
	for _, body := range []string{"<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head>",
		"<p>Reason: You're speaking plain HTTP to an SSL-enabled server port.<br />"} {
		if got := says(canned{400, nil, body}, "http://x:443"); !strings.Contains(got,
			"it speaks https there, and the site http://x:443 says http; write site=https://x:443 in the zuliprc") {
			t.Error(got)
		}
	}
	moved := canned{301, http.Header{"Location": {"https://chat.example.com/api/v1/events?queue_id=x"}}, ""}
	if got := says(moved, "http://chat.example.com"); !strings.Contains(got,
		`a redirect to "https://chat.example.com"`) ||
		!strings.HasSuffix(got, "write site=https://chat.example.com in the zuliprc") {
		t.Error(got)
	}
}

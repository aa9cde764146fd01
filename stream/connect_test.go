package stream_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// logbook collects a log.
type logbook struct{ natstest.Buffer }

// count is in how many lines the words are.
func (l *logbook) count(words string) int { return strings.Count(l.String(), words) }

func (l *logbook) logger() zerolog.Logger { return zerolog.New(l) }

func TestUnusableURLs(t *testing.T) {
	for _, test := range []struct{ url, shown string }{
		{"http://127.0.0.1:8080", `"http://127.0.0.1:8080"`},
		{"nats://", "names no host"},
		{"nats://:4222", "names no host"},
		{"not a url", "no address"},
		{"nats://127.0.0.1:port", "no address"},
		{"nats://127.0.0.1:65536", `"nats://127.0.0.1:65536"`},
		{"nats://127.0.0.1:4222/path", `"nats://127.0.0.1:4222"`},
		{"nats://127.0.0.1:4222,", "address 2 of 2 is empty"},
		{"127.0.0.1:4222, ftp://x", `address 2 of 2 ("ftp://x")`},
		{"nats://user:hunter2@127.0.0.1:port", "%2F"},
		{"http://user:hunter2@127.0.0.1", `"http://127.0.0.1"`},
		{"ftp://hunter2@127.0.0.1", `"ftp://127.0.0.1"`},
		{"user:hunter2@[::1", "%2F"},
		{"nats://user:hunt@er2@%zz", "%2F"},
		{"nats://hunter2/er2@127.0.0.1", "%2F"},
		{"nats://127.0.0.1:1,ws://127.0.0.1:2", "ws://127.0.0.1:2"},
		{"SUAHUNTER2SUAHUNTER2SUAHUNTER2SUAHUNTER2SUAHUNTER2SUAHUNTER2", "told from a key"},
	} {
		_, err := stream.Connect(t.Context(), stream.ConnectConfig{URL: test.url})
		if _, ok := errors.AsType[*stream.ConfigError](err); !ok {
			t.Errorf("%q: %v", test.url, err)
			continue
		}
		if !strings.Contains(err.Error(), test.shown) || strings.Contains(strings.ToLower(err.Error()), "hunter2") ||
			strings.Contains(err.Error(), "er2") {
			t.Errorf("%q: the error is %q, which should show %q", test.url, err, test.shown)
		}
	}
}

func TestUnusableFiles(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	absent := filepath.Join(dir, "absent")
	for _, test := range []struct {
		cfg  stream.ConnectConfig
		word string
	}{
		{stream.ConnectConfig{Creds: absent}, absent},
		{stream.ConnectConfig{NKey: absent}, absent},
		{stream.ConnectConfig{NKey: empty}, empty},
		{stream.ConnectConfig{Creds: empty, NKey: empty}, "one of them"},
		{stream.ConnectConfig{CA: absent}, absent},
		{stream.ConnectConfig{CA: empty}, empty},
		{stream.ConnectConfig{Cert: empty}, "give both"},
		{stream.ConnectConfig{Key: empty}, "give both"},
		{stream.ConnectConfig{Cert: empty, Key: absent}, absent},
	} {
		_, err := stream.Connect(t.Context(), test.cfg)
		if _, ok := errors.AsType[*stream.ConfigError](err); !ok || !strings.Contains(err.Error(), test.word) {
			t.Errorf("%+v: %v", test.cfg, err)
		}
	}
}

// A server that is not there is waited for, and one line says so, however long it takes.
func TestServerNotUpYet(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	srv.Stop()
	var log logbook
	nc := connectTo(t, stream.ConnectConfig{URL: srv.URL, Log: log.logger()})
	natstest.Eventually(t, "a line about the absence", func() bool { return log.count("NATS is not there") == 1 })
	if nc.IsConnected() {
		t.Fatal("connected to nothing")
	}
	time.Sleep(1500 * time.Millisecond) // some more attempts
	srv.Restart()
	natstest.Eventually(t, "the connection", nc.IsConnected)
	natstest.Eventually(t, "a line about it", func() bool { return log.count("connected to NATS") == 1 })
	open(t, nc, stream.Config{})
	srv.Stop()
	natstest.Eventually(t, "a line about the loss", func() bool { return log.count("connection to NATS lost") == 1 })
	srv.Restart()
	natstest.Eventually(t, "a line about the return", func() bool { return log.count("connected to NATS") == 2 })
	if n := log.count("NATS is not there"); n > 2 {
		t.Errorf("the absence is told %d times:\n%s", n, log.String())
	}
	// Each absence has its end, for an alert too.
	if away, back := log.count(`"event":"nats_away"`), log.count(`"event":"nats_back"`); away < 2 || back != 2 ||
		log.count(`"event":"nats_back","after":`) != 2 {
		t.Errorf("away %d times and back %d times:\n%s", away, back, log.String())
	}
	if !strings.Contains(log.String(), srv.URL) {
		t.Errorf("the log does not say which server:\n%s", log.String())
	}
}

// The line about a server that is not there has the reason of the last attempt. No DNS
// server is asked for a name that can be none, so its answer comes at once.
func TestWhyNATSIsNotThere(t *testing.T) {
	for url, why := range map[string]string{
		"nats://127.0.0.1:1":                         "dial tcp 127.0.0.1:1: connect: connection refused",
		"nats://127.0.0.1:1,nats://127.0.0.1:2":      "connection refused",
		"nats://nowhere..invalid:4222":               "lookup nowhere..invalid",
		"nats://127.0.0.1:1,nats://nowhere..invalid": "dial tcp",
	} {
		var log logbook
		connectTo(t, stream.ConnectConfig{URL: url, Log: log.logger()})
		natstest.Eventually(t, "a line about "+url, func() bool { return log.count("NATS is not there") == 1 })
		if log.count(why) != 1 || log.count("no servers available") > 0 {
			t.Errorf("%s: it does not say %q once:\n%s", url, why, log.String())
		}
	}
}

// A URL that asks for TLS where the server has none.
func TestNoTLS(t *testing.T) {
	var log logbook
	connectTo(t, stream.ConnectConfig{URL: strings.Replace(natstest.Start(t).URL, "nats://", "tls://", 1),
		Log: log.logger()})
	natstest.Eventually(t, "a line about it", func() bool { return log.count("the server offers no TLS") == 1 })
}

// A server without JetStream is named as such, and waited for.
func TestNoJetStream(t *testing.T) {
	srv := natstest.Start(t, func(o *server.Options) { o.JetStream = false })
	nc := connect(t, srv.URL)
	_, err := stream.Open(t.Context(), nc, stream.Config{Realm: "acme", Filter: filter})
	want(t, err, stream.Unavailable, "runs without JetStream: start it with -js")
	srv.Restart(func(o *server.Options) { o.JetStream = true })
	natstest.Eventually(t, "the connection", nc.IsConnected)
	open(t, nc, stream.Config{})
}

// Something listens, but it is no nats-server: one that speaks first, one that hangs up,
// and one that is silent.
func TestNotANATSServer(t *testing.T) {
	for name, answer := range map[string]func(net.Conn){
		"greets":   func(c net.Conn) { c.Write([]byte("220 mail.example.com ESMTP\r\n")); c.Close() },
		"talks":    func(c net.Conn) { c.Write([]byte("INFO {not json\r\n")) },
		"silent":   func(net.Conn) {},
		"http-ish": func(c net.Conn) { c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")); c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var conns []net.Conn
			var serving sync.WaitGroup
			serving.Go(func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					conns = append(conns, c)
					answer(c)
				}
			})
			defer func() {
				l.Close()
				serving.Wait()
				for _, c := range conns {
					c.Close()
				}
			}()
			var log logbook
			nc := connectTo(t, stream.ConnectConfig{URL: l.Addr().String(), Log: log.logger()})
			natstest.Eventually(t, "the log to say what it is", func() bool { return log.count("no NATS server") == 1 })
			nc.Close()
		})
	}
}

// A refused password is told once, calmly, without the password; when it is right again,
// all heals by itself.
func TestPasswordRotated(t *testing.T) {
	t.Parallel()
	users := func(password string) func(*server.Options) {
		return func(o *server.Options) { o.Users = []*server.User{{Username: "bridge", Password: password}} }
	}
	srv := natstest.Start(t, users("open sesame"))
	var log logbook
	nc := connectTo(t, stream.ConnectConfig{URL: srv.URL, User: "bridge", Password: "open sesame", Log: log.logger()})
	s := open(t, nc, stream.Config{})
	cursor := acked(t, s)
	srv.Restart(users("changed"))
	natstest.Eventually(t, "a line about it", func() bool { return log.count("refuses our credentials") == 1 })
	time.Sleep(1500 * time.Millisecond) // some more attempts
	_, err := s.Append(t.Context(), cursor, messages(1, 1))
	want(t, err, stream.Unavailable)
	srv.Restart(users("open sesame"))
	natstest.Eventually(t, "the connection", nc.IsConnected)
	if _, err := s.Append(t.Context(), last(t, s), messages(1, 1)); err != nil {
		t.Error(err)
	}
	if n := log.count(`"credentials":"the user bridge and a password"`); n != 1 {
		t.Errorf("the refusal is told %d times:\n%s", n, log.String())
	}

	// The same from the start, with the password in the URL.
	var fresh logbook
	connectTo(t, stream.ConnectConfig{URL: strings.Replace(srv.URL, "nats://", "nats://bridge:wrong-one@", 1),
		Log: fresh.logger()})
	natstest.Eventually(t, "a line about it", func() bool { return fresh.count("refuses our credentials") == 1 })
	if fresh.count("before the @") != 1 {
		t.Errorf("it is not said where they were given:\n%s", fresh.String())
	}
	for _, secret := range []string{"open sesame", "changed", "wrong-one"} {
		if log.count(secret)+fresh.count(secret) > 0 {
			t.Errorf("the log holds the password %q:\n%s%s", secret, log.String(), fresh.String())
		}
	}
}

func TestNKeyAndTLS(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	public, err := user.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	ca, caKey := certificate(t, nil, nil)
	cert, key := certificate(t, ca, caKey)
	stranger, strangerKey := certificate(t, nil, nil)
	caFile, certFile := write("ca.pem", pemOf("CERTIFICATE", ca.Raw)), write("cert.pem", pemOf("CERTIFICATE", cert.Raw))
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	keyFile := write("key.pem", pemOf("EC PRIVATE KEY", der))
	strangerFile := write("stranger.pem", pemOf("CERTIFICATE", stranger.Raw))
	_ = strangerKey
	seedFile := write("user.nk", seed)

	pool := x509.NewCertPool()
	pool.AddCert(ca)
	srv := natstest.Start(t, func(o *server.Options) {
		o.Nkeys = []*server.NkeyUser{{Nkey: public}}
		o.TLS, o.TLSVerify = true, true
		o.TLSConfig = &tls.Config{
			Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}},
			ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: pool,
		}
	})
	nc := connectTo(t, stream.ConnectConfig{URL: srv.URL, NKey: seedFile, CA: caFile, Cert: certFile, Key: keyFile})
	s := open(t, nc, stream.Config{})
	if _, err := s.Append(t.Context(), stream.Cursor{}, messages(1, 10)); err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []stream.ConnectConfig{
		{URL: srv.URL, NKey: seedFile, CA: caFile},                                     // no certificate of ours
		{URL: srv.URL, NKey: seedFile, CA: strangerFile, Cert: certFile, Key: keyFile}, // another authority
	} {
		var log logbook
		cfg.Log = log.logger()
		connectTo(t, cfg)
		natstest.Eventually(t, "a line about TLS", func() bool { return log.count("TLS with NATS fails") == 1 })
		if cfg.Cert != "" && log.count("x509: certificate signed by unknown authority") != 1 {
			t.Errorf("the reason is not told:\n%s", log.String())
		}
	}
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// certificate makes a certificate for 127.0.0.1, signed by parent or, without one, an
// authority that signs itself.
func certificate(t *testing.T, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate,
	*ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "natstest"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		IsCA:                  parent == nil, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func TestConnectWithEndedContext(t *testing.T) {
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if nc, err := stream.Connect(ctx, stream.ConnectConfig{}); nc != nil || !errors.Is(err, cause) {
		t.Errorf("got %v, %v", nc, err)
	}
}

// Realms share a connection: each writes its own stream, and what one of them may not do,
// or its end, is nothing to the other.
func TestTwoRealmsOnOneConnection(t *testing.T) {
	srv := natstest.Start(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "bridge", Password: "b", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{"zulip.beta.message"}}}}}
	})
	conn := connectTo(t, stream.ConnectConfig{URL: srv.URL, User: "bridge", Password: "b"})
	acme := open(t, conn, stream.Config{AckTimeout: time.Hour})
	beta := open(t, conn, stream.Config{Realm: "beta", Filter: "zulip.beta.>", AckTimeout: time.Hour})
	refused := stream.Message{Subject: "zulip.beta.message"}
	var writing sync.WaitGroup
	writing.Go(func() {
		for range 20 {
			if _, err := beta.Append(t.Context(), stream.Cursor{}, []stream.Message{refused}); kindOf(err) != stream.Forbidden {
				t.Errorf("a write that is not allowed: %v", err)
			}
		}
	})
	cursor := last(t, acme)
	for n := range 20 {
		var err error
		if cursor, err = acme.Append(t.Context(), cursor, messages(n, 1)); err != nil {
			t.Error(err)
		}
	}
	writing.Wait()
	beta.Close()
	if _, err := acme.Append(t.Context(), cursor, messages(20, 5)); err != nil {
		t.Errorf("behind the end of the other one: %v", err)
	}
	if got := contents(t, acme); !slices.Equal(got, ids(0, 25)) {
		t.Errorf("the stream holds %v", got)
	}
}

// What Connect and Open start, Close ends: no goroutine is left of twenty connections and
// streams.
func TestNothingIsLeft(t *testing.T) {
	srv := natstest.Start(t)
	use := func() {
		nc, err := stream.Connect(t.Context(), stream.ConnectConfig{URL: srv.URL, Log: natstest.Log(t)})
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		s, err := tryOpen(t, nc, stream.Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.Append(t.Context(), last(t, s), messages(0, 3)); err != nil {
			t.Fatal(err)
		}
		if err := s.PutObject(t.Context(), "object", []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	var left []string
	ours := func() (n int) {
		left = nil
		all := make([]byte, 16<<20)
		for stack := range strings.SplitSeq(string(all[:runtime.Stack(all, true)]), "\n\n") {
			if strings.Contains(stack, "\nzulip-nats/stream.") ||
				strings.Contains(stack, "\ngithub.com/nats-io/nats.go.") {
				left = append(left, stack)
			}
		}
		return len(left)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(strings.Join(left, "\n\n"))
		}
	})
	use()
	natstest.Eventually(t, "the first connection's end", func() bool { return ours() == 0 })
	for range 20 {
		use()
	}
	// Closed before any other goroutine has had its turn.
	processors := runtime.GOMAXPROCS(1)
	for range 20 {
		nc, err := stream.Connect(t.Context(), stream.ConnectConfig{URL: srv.URL})
		if err != nil {
			t.Fatal(err)
		}
		nc.Close()
	}
	runtime.GOMAXPROCS(processors)
	natstest.Eventually(t, fmt.Sprintf("the end of %d goroutines", ours()), func() bool { return ours() == 0 })
}

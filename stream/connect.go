package stream

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"
)

// ConnectConfig says how to reach NATS and as whom. Files are read again at each reconnect, so that rotated credentials heal by
// themselves.
type ConnectConfig struct {
	// URL is one server or several, separated by commas: nats://host:port, tls://, ws://, wss:// or just host:port; a user and a
	// password, or a token, may stand before the host. Empty is nats://127.0.0.1:4222.
	URL string
	// Name is what the server shows for this connection (nats server report connections).
	Name string
	// Creds is a file with a user's JWT and seed; NKey a file with a seed; at most one of the two.
	Creds, NKey string
	// User and Password serve where the URL has none.
	User, Password string
	// CA is a file with the certificates that sign the server's; Cert and Key are ours, for servers that ask for one.
	CA, Cert, Key string
	// Log gets each change of the connection's state, once.
	Log zerolog.Logger
}

const (
	reconnectWait   = 250 * time.Millisecond
	reconnectJitter = 250 * time.Millisecond
	connectTimeout  = 2 * time.Second
	pingInterval    = 5 * time.Second
	pingsLost       = 2
	// inboxPrefix is where answers come to. With the default prefix a user who may read its own answers could read everybody's.
	inboxPrefix = "_INBOX_zulip"
)

// Connect returns a connection that never gives up. It may not be connected yet when it is returned, and ctx ends only the first
// attempt; close it when done (there is nothing to drain: every write is acknowledged or unclear).
//
// What cannot be right whatever the servers do, as a URL that is none or a file that cannot be read, is a [*ConfigError]. All
// else is waited for, and said once in the log: a server that is not there, a refused password, something that is no NATS server.
//
// Nothing is kept to be sent after a reconnect (ReconnectBufSize -1): it would be stored long after it was given up. The ping interval
// finds a dead link within 15 seconds instead of six minutes. IgnoreAuthErrorAbort: the second refusal of a password would close the
// connection for ever.
func Connect(ctx context.Context, cfg ConnectConfig) (*nats.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	servers, err := parseURLs(cfg.URL)
	if err != nil {
		return nil, err
	}
	j := &journal{log: cfg.Log, servers: redactURLs(servers), said: make(map[string]bool)}
	options := []nats.Option{
		nats.Name(cfg.Name),
		nats.Timeout(connectTimeout),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(reconnectWait),
		nats.ReconnectJitter(reconnectJitter, reconnectJitter),
		nats.ReconnectBufSize(-1),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(pingsLost),
		nats.RetryOnFailedConnect(true),
		nats.IgnoreAuthErrorAbort(),
		nats.CustomInboxPrefix(inboxPrefix),
		nats.ConnectHandler(j.connected),
		nats.ReconnectHandler(j.connected),
		nats.DisconnectErrHandler(j.disconnected),
		nats.ReconnectErrHandler(j.failed),
		nats.ErrorHandler(j.complained),
		nats.ClosedHandler(j.closed),
		nats.LameDuckModeHandler(j.lameDuck),
	}
	seed := &seedFile{path: cfg.NKey}
	more, err := credentialOptions(cfg, seed)
	if err != nil {
		return nil, err
	}
	nc, err := nats.Connect(strings.Join(servers, ","), append(options, more...)...)
	if err != nil {
		return nil, &ConfigError{Setting: "NATS connection", Reason: fmt.Sprintf("%s: %v", j.servers, err)}
	}
	seed.conn.Store(nc)
	if ctx.Err() != nil {
		nc.Close()
		return nil, context.Cause(ctx)
	}
	linkOf(nc)
	// nats.go tells of a later failure by the connection's status only.
	go j.watch(nc, nc.StatusChanged(nats.RECONNECTING, nats.CLOSED))
	if nc.IsConnected() {
		j.connected(nc)
	}
	return nc, nil
}

// seedFile signs in with the seed that its file holds at the time. nats.NkeyOptionFromSeed reads the seed anew but keeps the public key of
// the start, which a rotated seed does not fit.
type seedFile struct {
	path string
	conn atomic.Pointer[nats.Conn]
}

// pair reads the file.
func (s *seedFile) pair() (pair nkeys.KeyPair, public string, err error) {
	text, err := os.ReadFile(s.path)
	if err != nil {
		return nil, "", err
	}
	defer clear(text)
	if pair, err = nkeys.ParseDecoratedNKey(text); err != nil {
		return nil, "", err
	}
	public, err = pair.PublicKey()
	return pair, public, err
}

// sign is called for each attempt, with the connection's lock held and after the public key for it was taken. So a new seed fails once
// more, and the attempt after it is right.
func (s *seedFile) sign(nonce []byte) ([]byte, error) {
	pair, public, err := s.pair()
	if err != nil {
		return nil, err
	}
	defer pair.Wipe()
	if nc := s.conn.Load(); nc != nil {
		nc.Opts.Nkey = public
	}
	return pair.Sign(nonce)
}

func credentialOptions(cfg ConnectConfig, seed *seedFile) ([]nats.Option, error) {
	var options []nats.Option
	file := func(setting, path string) error {
		f, err := os.Open(path)
		if err != nil {
			return &ConfigError{Setting: setting, Reason: fmt.Sprintf("the file cannot be read: %v", err)}
		}
		return f.Close()
	}
	switch {
	case cfg.Creds != "" && cfg.NKey != "":
		return nil, &ConfigError{Setting: "NATS credentials", Reason: "a credentials file and an nkey file are given; use one of them"}
	case cfg.Creds != "":
		if err := file("NATS credentials file", cfg.Creds); err != nil {
			return nil, err
		}
		options = append(options, nats.UserCredentials(cfg.Creds))
	case cfg.NKey != "":
		if err := file("NATS nkey file", cfg.NKey); err != nil {
			return nil, err
		}
		pair, public, err := seed.pair()
		if err != nil || !nkeys.IsValidPublicUserKey(public) {
			return nil, &ConfigError{Setting: "NATS nkey file", Reason: fmt.Sprintf("%s holds no user seed: %v", cfg.NKey, cmp.Or(err, errors.New("it is a seed of another kind")))}
		}
		pair.Wipe()
		options = append(options, nats.Nkey(public, seed.sign))
	}
	if cfg.User != "" || cfg.Password != "" {
		options = append(options, nats.UserInfo(cfg.User, cfg.Password))
	}
	if cfg.CA != "" {
		pem, err := os.ReadFile(cfg.CA)
		if err != nil {
			return nil, &ConfigError{Setting: "NATS CA file", Reason: fmt.Sprintf("the file cannot be read: %v", err)}
		}
		if !x509.NewCertPool().AppendCertsFromPEM(pem) {
			return nil, &ConfigError{Setting: "NATS CA file", Reason: cfg.CA + " holds no certificate in PEM form"}
		}
		options = append(options, nats.RootCAs(cfg.CA))
	}
	if (cfg.Cert == "") != (cfg.Key == "") {
		return nil, &ConfigError{Setting: "NATS client certificate", Reason: "it needs its key, and the key needs it; give both"}
	}
	if cfg.Cert != "" {
		if _, err := tls.LoadX509KeyPair(cfg.Cert, cfg.Key); err != nil {
			return nil, &ConfigError{Setting: "NATS client certificate", Reason: fmt.Sprintf("%s with %s: %v", cfg.Cert, cfg.Key, err)}
		}
		options = append(options, nats.ClientCert(cfg.Cert, cfg.Key))
	}
	return options, nil
}

// parseURLs splits and checks a list of server URLs.
func parseURLs(list string) ([]string, error) {
	if strings.TrimSpace(list) == "" {
		list = nats.DefaultURL
	}
	var servers []string
	for raw := range strings.SplitSeq(list, ",") {
		raw = strings.TrimSpace(raw)
		bad := func(why string) error {
			return &ConfigError{Setting: "NATS URL", Reason: fmt.Sprintf("%q %s; write nats://host:port", redact(raw), why)}
		}
		if raw == "" {
			return nil, bad("is empty")
		}
		full := raw
		if !strings.Contains(full, "://") {
			full = "nats://" + full
		}
		u, err := url.Parse(full)
		if err != nil {
			// The error of url.Parse quotes the whole URL, password and all; only its inner part is safe to show.
			if inner, ok := errors.AsType[*url.Error](err); ok && !strings.Contains(raw, "@") {
				err = inner.Err
				return nil, bad("is no URL: " + err.Error())
			}
			return nil, bad("is no URL")
		}
		switch u.Scheme {
		case "nats", "tls", "ws", "wss":
		default:
			return nil, bad("has the scheme " + u.Scheme + ", which is none of nats, tls, ws, wss")
		}
		if u.Hostname() == "" {
			return nil, bad("names no host")
		}
		if strings.ContainsAny(u.Host, " \t\"'<>") {
			return nil, bad("names no host that could exist")
		}
		if u.Path != "" && u.Path != "/" && u.Scheme != "ws" && u.Scheme != "wss" {
			return nil, bad("has a path")
		}
		servers = append(servers, full)
	}
	return servers, nil
}

var userinfo = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]*://)?(?:([^/:@]*)(:))?.*@`)

// redact masks the password or token in a URL, or in what was meant to be one.
func redact(raw string) string {
	return userinfo.ReplaceAllString(raw, "${1}${2}${3}xxxxx@")
}

func redactURLs(servers []string) string {
	masked := make([]string, len(servers))
	for i, s := range servers {
		masked[i] = redact(s)
	}
	return strings.Join(masked, ", ")
}

// journal writes down the states of a connection, each when it begins, so that a day of retries is one line.
type journal struct {
	log     zerolog.Logger
	servers string

	mu    sync.Mutex
	said  map[string]bool // the states written down since the last time we were connected
	since uint64          // the reconnect that was written down last, plus one
}

// enter is true for the first time that the connection is in this state since it was connected. Of several servers one may be
// absent and the other refuse us, in turns and for days.
func (j *journal) enter(state string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.said[state] {
		return false
	}
	j.said[state] = true
	return true
}

func (j *journal) connected(nc *nats.Conn) {
	j.mu.Lock()
	count := nc.Stats().Reconnects + 1
	again := j.since == count // told by Connect and by the handler
	j.since = count
	clear(j.said)
	j.mu.Unlock()
	if !again {
		j.log.Info().Str("server", nc.ConnectedUrlRedacted()).Str("version", nc.ConnectedServerVersion()).Msg("connected to NATS")
	}
}

func (j *journal) disconnected(nc *nats.Conn, err error) {
	if nc.IsClosed() {
		return
	}
	why := "the server closed it"
	if err != nil {
		why = err.Error()
	}
	if j.enter("lost") {
		j.log.Warn().Str("server", j.servers).Str("reason", why).Msg("connection to NATS lost; waiting for it to come back")
	}
}

// failed is called with the reason why an attempt to connect failed.
func (j *journal) failed(_ *nats.Conn, err error) {
	state, message := diagnose(err)
	if !j.enter(state) {
		return
	}
	j.log.Warn().Str("server", j.servers).Str("reason", err.Error()).Msg(message)
}

// diagnose tells the ways apart in which an attempt to connect fails, for a person to act on.
func diagnose(err error) (state, message string) {
	text := strings.ToLower(err.Error())
	operation := ""
	if e, ok := errors.AsType[*net.OpError](err); ok {
		operation = e.Op
	}
	_, badCert := errors.AsType[*tls.CertificateVerificationError](err)
	_, badRecord := errors.AsType[tls.RecordHeaderError](err)
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked),
		errors.Is(err, nats.ErrAccountAuthExpired), strings.Contains(text, "authorization violation"),
		strings.Contains(text, "authentication"):
		return "refused", "NATS refuses our credentials; waiting until they are right (files are read again at each attempt)"
	case badCert, badRecord, errors.Is(err, nats.ErrTLS), strings.Contains(text, "tls:"), strings.Contains(text, "x509:"),
		errors.Is(err, nats.ErrSecureConnRequired), errors.Is(err, nats.ErrSecureConnWanted):
		return "tls", "TLS with NATS fails; check the CA file, the client certificate and the host name in the URL; trying on"
	case errors.Is(err, nats.ErrNoInfoReceived), operation == "read" && strings.Contains(text, "timeout"),
		strings.Contains(text, "invalid character"):
		return "stranger", "what listens there is no NATS server, or one that hangs; check the URL and the server; trying on"
	case operation == "dial", errors.Is(err, nats.ErrNoServers):
		return "absent", "NATS is not there; waiting for it"
	}
	return "failing", "connecting to NATS fails; trying on"
}

// watch reports failures of the handshake, which nats.go tells by no handler once the first attempt is over.
func (j *journal) watch(nc *nats.Conn, changes chan nats.Status) {
	defer nc.RemoveStatusListener(changes)
	for range changes {
		if nc.IsClosed() {
			return
		}
		err := nc.LastError() // may be an old one of another sort
		if err == nil || errors.Is(err, nats.ErrPermissionViolation) || errors.Is(err, nats.ErrSlowConsumer) || !nc.IsReconnecting() {
			continue
		}
		j.failed(nc, err)
	}
}

// complained gets all errors that belong to no call of ours.
func (j *journal) complained(nc *nats.Conn, sub *nats.Subscription, err error) {
	if v, ok := parseViolation(err); ok {
		j.log.Warn().Str("subject", v.subject).Str("action", v.action).Msg("NATS refuses: the user lacks a permission")
		return
	}
	if !nc.IsConnected() {
		// What is no news about connecting is about the connection that was lost, and that has been told.
		if state, _ := diagnose(err); state != "failing" {
			j.failed(nc, err)
		}
		return
	}
	event := j.log.Warn().Str("reason", err.Error())
	if sub != nil {
		event = event.Str("subject", sub.Subject)
	}
	event.Msg("NATS connection reports a problem")
}

func (j *journal) closed(nc *nats.Conn) {
	if err := nc.LastError(); err != nil {
		j.log.Info().Str("reason", err.Error()).Msg("connection to NATS closed")
	}
}

func (j *journal) lameDuck(nc *nats.Conn) {
	j.log.Info().Str("server", nc.ConnectedUrlRedacted()).Msg("this NATS server is about to stop; another one will be looked for")
}

package poller

// The way to Zulip's servers, which accounts share.

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"zulip-nats/redact"
)

const (
	connectTimeout = 10 * time.Second
	// A connection of HTTP/2 carries many polls, so one whose other end has vanished
	// would take all of them with it, and the next ones too: a poll that is given up ends
	// itself there, and not the connection. So it is asked for a sign of life where
	// nothing came for pingAfter, and is closed where none comes for pingTimeout. Both
	// together are less than a poll's patience. A Zulip that lives says something every
	// 55 s at least, so hardly any is asked.
	pingAfter, pingTimeout = 45 * time.Second, 15 * time.Second
	// streamWindow is how much of one answer may be on its way, or here and not read
	// yet. It bounds the memory of answers whose events cannot be stored now, of which
	// there may be a thousand behind an outage of NATS, and the speed from far away: 5 MB
	// a second at 50 ms, compressed. The window of the connection is that of net/http, a
	// gigabyte, more than all polls on it can have. So an answer that nobody reads does
	// not hold up the others.
	streamWindow = 256 << 10
	// mostHead bounds the head of an answer. Zulip's and nginx's has some 500 bytes.
	mostHead = 64 << 10
)

// transports has one transport for all accounts that trust and identify in the same way,
// so that those of one host share connections. It forgets none: there are as many as
// there were different settings since the process began.
var transports struct {
	sync.Mutex
	all map[transportKey]*http.Transport
}

// transportKey is what must be the same. The authorities go by what the file held, so
// that an account that begins anew sees a bundle that was renewed.
type transportKey struct {
	authorities [sha256.Size]byte // zero: the system's
	cert, key   string            // paths
	insecure    bool
}

// sharedTransport gives the transport that trusts and identifies as the account says. The
// error is a *ConfigError.
//
// Where the server speaks HTTP/2, which TLS finds out, the polls of one host are streams
// of one connection, and of a further one for each as many as the server allows (nginx:
// 128). Else each poll has a connection. With HTTP/2 a poll that is given up is reset, and
// its connection serves the others.
func sharedTransport(a Account) (*http.Transport, error) {
	key := transportKey{cert: a.ClientCert, key: a.ClientCertKey, insecure: a.Insecure}
	var pem []byte
	if a.CertBundle != "" && !a.Insecure {
		var err error
		if pem, err = os.ReadFile(a.CertBundle); err != nil {
			return nil, &ConfigError{fmt.Sprintf("cert_bundle: the file %s cannot be read: %s",
				redact.Path(a.CertBundle), redact.FileError(err)), err}
		}
		key.authorities = sha256.Sum256(pem)
	}
	transports.Lock()
	defer transports.Unlock()
	if t := transports.all[key]; t != nil {
		return t, nil
	}
	t, err := newTransport(a, pem)
	if err != nil {
		return nil, err
	}
	if transports.all == nil {
		transports.all = make(map[transportKey]*http.Transport)
	}
	transports.all[key] = t
	return t, nil
}

// newTransport makes a transport that trusts the authorities in pem, or the system's if
// there are none, and identifies as the account says. Client certificates are read again
// for each connection, so that they can be renewed in place. The error is a *ConfigError.
func newTransport(a Account, pem []byte) (*http.Transport, error) {
	conf := &tls.Config{InsecureSkipVerify: a.Insecure} // only by the operator's explicit word, see Account
	if a.CertBundle != "" && !a.Insecure {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, configErrorf("cert_bundle: there is no PEM certificate in %s", redact.Path(a.CertBundle))
		}
	}
	if a.ClientCert != "" {
		load := func() (*tls.Certificate, error) {
			key := a.ClientCertKey
			if key == "" {
				key = a.ClientCert // one file may hold both
			}
			cert, err := tls.LoadX509KeyPair(a.ClientCert, key)
			if err != nil {
				return nil, &ConfigError{fmt.Sprintf("client_cert %s cannot be used: %s", redact.Path(a.ClientCert),
					redact.FileError(err)), err}
			}
			return &cert, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // what Tornado speaks, and whatever has no TLS
	protocols.SetHTTP2(true) // what nginx in front of it speaks
	return &http.Transport{
		Proxy:               proxy,
		DialContext:         (&net.Dialer{Timeout: connectTimeout}).DialContext,
		TLSHandshakeTimeout: connectTimeout,
		TLSClientConfig:     conf,
		Protocols:           protocols,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout:           pingAfter,
			PingTimeout:               pingTimeout,
			WriteByteTimeout:          connectTimeout,
			MaxReceiveBufferPerStream: streamWindow,
		},
		// With HTTP/1 each realm of a host has a connection, which the next poll takes up
		// again; unless said, two would be kept.
		MaxIdleConnsPerHost:    math.MaxInt,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: mostHead,
		ReadBufferSize:         1 << 10, // for headers: the body goes past it into a buffer of its own
		WriteBufferSize:        1 << 10,
		DisableCompression:     true, // see Client.send
	}, nil
}

// proxy is the proxy that the environment names. The standard error quotes its address,
// password and all.
func proxy(req *http.Request) (*url.URL, error) {
	p, err := http.ProxyFromEnvironment(req)
	if err != nil {
		return nil, errors.New("the variable HTTPS_PROXY or HTTP_PROXY does not hold the address of a proxy: write " +
			"it like http://proxy.example.com:3128")
	}
	return p, nil
}

package monitor

import (
	"net/http"
	"net/http/pprof"
)

// withProfiles adds what `go tool pprof` and `go tool trace` ask for, below /debug/pprof/.
//
// /debug/pprof/cmdline is not there: passwords may stand on a command line. To import
// net/http/pprof puts all of it on [http.DefaultServeMux] besides, which nobody serves
// here; nats-server does the same.
func withProfiles(h http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", h)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index) // and the profiles by their names
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
	return mux
}

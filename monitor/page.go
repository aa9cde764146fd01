package monitor

import (
	"cmp"
	"embed"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"
)

// The page is three files and a picture, as they are: nothing is built, and nothing comes
// from anywhere else. It asks for /page.json every few seconds, and puts what that says
// into its place as text.
//
//go:embed page
var pageFiles embed.FS

// pagePolicy lets the page have what this server serves, and nothing else: no script or
// style that stands in the page itself, nothing of another origin, no form, and no frame
// of another page around it. A text from Zulip that looks like markup could do nothing,
// even if it got into the page as such.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// PageReport is what /page.json answers. It is for the page alone and changes with it; it
// is 200 whatever is wrong, since a browser takes another answer for a fault of the page.
type PageReport struct {
	Report
	// Realms are in place of those of Report: all of them in their order, or of more than
	// mostCards so many, those that somebody should look at first.
	Realms []PageRealm `json:"realms"`
	Total  int         `json:"total"` // realms that there are
	Bad    int         `json:"bad"`   // of them, those that do not do their job
	Found  int         `json:"found"` // those whose name has in it what was asked for
}

// mostCards is how many realms the page shows at once: what a browser draws every few
// seconds without getting slow, and more than anybody reads.
const mostCards = 50

// PageRealm is one realm in a [PageReport].
type PageRealm struct {
	RealmReport
	Minute MinuteReport `json:"minute"`
	Hour   HourReport   `json:"hour"`
	Recent []RunReport  `json:"recent"`
}

// RunReport is a [bridge.Run].
type RunReport struct {
	Type  string    `json:"type"`
	Count uint64    `json:"count"`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
}

// page adds the page to what is served.
func (m *Monitor) page(mux *http.ServeMux) {
	for _, file := range []struct{ at, name, is string }{
		{"GET /{$}", "index.html", "text/html; charset=utf-8"},
		{"GET /page.js", "page.js", "text/javascript; charset=utf-8"},
		{"GET /style.css", "style.css", "text/css; charset=utf-8"},
		{"GET /icon.svg", "icon.svg", "image/svg+xml"},
	} {
		mux.HandleFunc(file.at, func(w http.ResponseWriter, _ *http.Request) { servePageFile(w, file.name, file.is) })
	}
	mux.HandleFunc("GET /page.json", func(w http.ResponseWriter, q *http.Request) {
		r := m.pageReport(strings.ToLower(q.FormValue("name")), time.Now())
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(r) // whoever asked may be gone
	})
}

// pageReport is the answer with the realms whose name has that in it, in lower case.
func (m *Monitor) pageReport(name string, now time.Time) PageReport {
	realms := m.history.look(m.realms, now)
	r := PageReport{Report: NewReport(m.version, realms, now), Realms: []PageRealm{}, Total: len(realms)}
	var chosen []int
	for i := range r.Report.Realms {
		if !r.Report.Realms[i].OK {
			r.Bad++
		}
		if strings.Contains(strings.ToLower(realms[i].Realm), name) {
			chosen = append(chosen, i)
		}
	}
	if r.Found = len(chosen); r.Found > mostCards {
		slices.SortStableFunc(chosen, func(i, j int) int {
			return cmp.Compare(urgency(&r.Report.Realms[i]), urgency(&r.Report.Realms[j]))
		})
		chosen = chosen[:mostCards]
	}
	for _, i := range chosen {
		one := PageRealm{RealmReport: r.Report.Realms[i], Recent: []RunReport{}}
		one.Hour, one.Minute = m.history.of(realms[i].Realm, now)
		for _, run := range realms[i].Recent {
			one.Recent = append(one.Recent, RunReport{run.Type, run.Count, run.First.UTC(), run.Last.UTC()})
		}
		r.Realms = append(r.Realms, one)
	}
	return r
}

// urgency sorts realms: first those that do not do their job, then those with some
// trouble, then those that make good a loss, then the others.
func urgency(r *RealmReport) int {
	switch {
	case !r.OK:
		return 0
	case len(r.Reasons) > 0:
		return 1
	case r.Gap != nil:
		return 2
	}
	return 3
}

func servePageFile(w http.ResponseWriter, name, is string) {
	text, err := pageFiles.ReadFile("page/" + name)
	if err != nil { // it is named above, and so it is there
		http.Error(w, "this file is missing in the program", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", is)
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("Referrer-Policy", "no-referrer")
	_, _ = w.Write(text) // whoever asked may be gone
}

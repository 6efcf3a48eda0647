package server

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestAProbeSaysWhatReadyzSays(t *testing.T) {
	var unready error
	srv := httptest.NewServer(Ops(prometheus.NewRegistry(), func(context.Context) error { return unready }))
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"127.0.0.1:" + port, ":" + port, "0.0.0.0:" + port, "[::]:" + port} {
		if err := Probe(t.Context(), address, "/readyz"); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
	unready = errors.New("the log is halted")
	if err := Probe(t.Context(), "127.0.0.1:"+port, "/readyz"); err == nil || !strings.Contains(err.Error(), "the log is halted") {
		t.Errorf("%v", err)
	}
	srv.Close()
	if err := Probe(t.Context(), "127.0.0.1:"+port, "/readyz"); err == nil {
		t.Error("nobody listens, and all is well")
	}
	if err := Probe(t.Context(), "localhost", "/"); err == nil {
		t.Error("an address without a port")
	}
	endless := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, maxProbe+1)) }))
	defer endless.Close()
	if err := Probe(t.Context(), endless.Listener.Addr().String(), "/"); err == nil {
		t.Error("an endless answer")
	}
}

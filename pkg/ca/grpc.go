package ca

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/gen/fulcio"
)

// RegisterGRPC adds dev.sigstore.fulcio.v2.CA and grpc.health.v1.Health to s. sigstore-java
// before its HTTP client and go-witness call them on the port of the HTTP API. Create the
// server with grpc.MaxRecvMsgSize(MaxBody).
func (h *Handler) RegisterGRPC(s grpc.ServiceRegistrar) {
	fulcio.RegisterCAServer(s, h)
	grpc_health_v1.RegisterHealthServer(s, health{})
}

// CreateSigningCertificate implements the gRPC service.
func (h *Handler) CreateSigningCertificate(ctx context.Context, m *fulcio.CreateSigningCertificateRequest) (*fulcio.SigningCertificate, error) {
	started := time.Now()
	md, _ := metadata.FromIncomingContext(ctx)
	given := ""
	if ids := md.Get("x-request-id"); len(ids) == 1 {
		given = ids[0]
	}
	id := requestID(given)
	issued, err := h.issueGRPC(ctx, m, md, id)
	code := codes.OK
	defer func() {
		h.ca.metrics.latency.WithLabelValues(code.String(), "grpc").Observe(time.Since(started).Seconds())
	}()
	if err != nil {
		a := h.refuse(ctx, err, id, fulcio.CA_CreateSigningCertificate_FullMethodName)
		code = a.code
		return nil, status.Error(a.code, a.message)
	}
	return response(issued), nil
}

func (h *Handler) issueGRPC(ctx context.Context, m *fulcio.CreateSigningCertificateRequest, md metadata.MD, id string) (*Issued, error) {
	outer := ""
	switch tokens := md.Get("oidcidentitytoken"); {
	case len(tokens) == 1:
		outer = tokens[0]
	case len(tokens) > 1:
		return nil, fault.New(fault.Unauthentic, "malformed_token", nil, "%s: the metadata carries several tokens", textToken)
	}
	req, err := request(m, outer, id)
	if err != nil {
		return nil, err
	}
	return h.issue(ctx, req)
}

// GetTrustBundle implements the gRPC service.
func (h *Handler) GetTrustBundle(context.Context, *fulcio.GetTrustBundleRequest) (*fulcio.TrustBundle, error) {
	return h.trustBundle(), nil
}

// GetConfiguration implements the gRPC service.
func (h *Handler) GetConfiguration(context.Context, *fulcio.GetConfigurationRequest) (*fulcio.Configuration, error) {
	return h.configuration(), nil
}

// health answers Check with SERVING while the process lives, as upstream; Watch and List stay
// unimplemented.
type health struct {
	grpc_health_v1.UnimplementedHealthServer
}

func (health) Check(context.Context, *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}, nil
}

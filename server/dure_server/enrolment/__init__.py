"""How a firm comes in: the operator's invitation, the firm's request, the operator's approval (design, section 5).

`operator` holds what an operator does, `service` what a firm asks, `app` the HTTPS API around the service.
"""

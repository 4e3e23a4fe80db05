"""What the operator's console and the firm's own page have in common: the look, and what keeps a page on its machine.

    assets      files that a page loads, each with an integrity value
    guard       headers, and who may ask
    render      templates and how values are written
    serving     a server on loopback

It knows neither a server nor a firm, so that both roles can stand on it without importing each other.
"""

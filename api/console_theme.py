"""Theme of the console: titles, files, colours and the menu's source, for django-unfold."""

UNFOLD = {
    "SITE_TITLE": "KASOKO",
    "SITE_HEADER": "KASOKO",
    "SITE_URL": None,
    "SITE_SYMBOL": "payments",
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": "api.console.menu.favicon"}],
    "STYLES": ["api.console.menu.stylesheet"],
    "SCRIPTS": ["api.console.menu.script"],
    "ENVIRONMENT": "api.console.menu.environment",
    "SHOW_HISTORY": False,
    "SHOW_VIEW_ON_SITE": False,
    "ACCOUNT": {"navigation": "api.console.menu.account_links"},
    "SIDEBAR": {"navigation": "api.console.menu.navigation"},
    "COLORS": {
        "primary": {
            "50": "#eefbf4", "100": "#d6f5e3", "200": "#b0eacb", "300": "#7cd8ab", "400": "#46be87", "500": "#23a26c",
            "600": "#158257", "700": "#116848", "800": "#10523a", "900": "#0e4431", "950": "#06261c",
        },
    },
}  # fmt: skip

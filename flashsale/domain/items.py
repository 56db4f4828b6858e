def item_name(sale_id: str, number: int) -> str:
    return ""


def item_picture(sale_id: str, number: int) -> str:
    return ""
